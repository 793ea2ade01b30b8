// Parameters and bindings of the decode attention kernels, except the cache and its page table.
struct Params {
    rows: u32,
    kv_heads: u32,
    group: u32,       // query heads per K/V head
    tiles: u32,       // ceil(group / QUERIES)
    splits: u32,      // runs in the grid; workgroups beyond the runs of their row return early
    stride4: u32,     // vec4s from one row of q to the next
    table: u32,       // page table entries of a sequence
    scale: f32,
    window: u32,      // mask/window: positions that a query sees
    cap: f32,         // score/cap
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(2) var<storage, read> step_rows: array<vec4<u32>>;       // [rows] token, position, slot, place
@group(0) @binding(3) var<storage, read> q: array<vec4<f32>>;               // [rows, at least heads · 4 · D4]
@group(0) @binding(4) var<storage, read_write> partials: array<vec4<f32>>;  // [rows, heads, splits, D4 + 1] vec4s;
                                                                            //   [rows, heads, D4] if splits is 1
