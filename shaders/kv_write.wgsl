//! needs kv_store paged
// Writes the K and V heads of each row to the paged cache: kv[page, which, head, position % PAGE, :] = head number
// which · kv_heads + head of x[r], counted from first4. Here which is 0 for K and 1 for V, and page is
// pages[slot, position / PAGE].
// Grid: ceil(rows · 2 · kv_heads · D4 / 64) workgroups; an invocation copies four elements.
struct Params {
    rows: u32,
    kv_heads: u32,
    stride4: u32,     // vec4s from one row of x to the next
    first4: u32,      // vec4 of a row where K begins; V follows K
    table: u32,       // page table entries of a sequence
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step_rows: array<vec4<u32>>;   // [rows] token, position, slot, 0
@group(0) @binding(2) var<storage, read> pages: array<u32>;             // [slots, table] page numbers
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;           // [rows, … K heads, V heads]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let item = (id.y * grid.x + id.x) * 64u + local;
    let per_row = 2u * params.kv_heads * D4;
    let row = item / per_row;
    if (row >= params.rows) {
        return;
    }
    let within = item % per_row;
    let head = within / D4 % params.kv_heads;
    let position = step_rows[row].y;
    let page = pages[step_rows[row].z * params.table + position / PAGE];
    let at = paged_index(page, within / (params.kv_heads * D4), head, params.kv_heads, position);
    kv_store(at + within % D4, x[row * params.stride4 + params.first4 + within]);
}
