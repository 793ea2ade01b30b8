// What the kernels of decode's attention are told, and what they read and write besides the cache.
struct Params {
    rows: u32,
    kv_heads: u32,
    group: u32,       // query heads to a K/V head
    tiles: u32,       // ceil(group / QUERIES)
    splits: u32,      // runs in the grid; rows with fewer leave early
    stride4: u32,     // groups of four from a row of q to the next
    table: u32,       // entries a sequence has in the page table
    scale: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(2) var<storage, read> step_rows: array<vec4<u32>>;       // [rows] token, position, slot, place
@group(0) @binding(3) var<storage, read> q: array<vec4<f32>>;               // [rows, heads · 4 · D4 …]
@group(0) @binding(4) var<storage, read_write> partials: array<vec4<f32>>;  // [rows, heads, splits, D4 + 1] of four
