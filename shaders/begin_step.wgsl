//! needs weights order next
//! const PAGE
// Begins a step. For every row, the residual is out[r, :] = factor · W[token(r), :]. The kernel also prepares the first norm
// (lib/next) and writes the row's place in the cache: page(position) · PAGE + position % PAGE.
// Grid: rows · ceil(columns4 / 64) workgroups; an invocation computes four elements.
// A table that is cut by rows takes one dispatch for each part; a dispatch writes the rows whose token its part holds.
struct Params {
    rows: u32,
    columns: u32,
    stride4: u32,     // vec4s from one row of W to the next
    first: u32,       // first row of this part
    count: u32,       // rows of this part
    table: u32,       // page table entries of a sequence
    factor: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> step_rows: array<vec4<u32>>;    // [rows] token, position, slot, place
@group(0) @binding(2) var<storage, read> pages: array<u32>;                    // [slots, table] page numbers
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;          // [rows, columns]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let columns4 = (params.columns + 3u) / 4u;
    let across = (columns4 + 63u) / 64u;
    let row = group / across;
    let c = group % across * 64u + local;
    if (row >= params.rows || c >= columns4) {
        return;
    }
    let token = step_rows[row].x;
    if (c == 0u) {
        let position = step_rows[row].y;
        let page = pages[step_rows[row].z * params.table + position / PAGE];
        step_rows[row].w = page * PAGE + position % PAGE;
    }
    if (token >= params.first && token - params.first < params.count) {
        let v = params.factor * weights_load(order_row(token - params.first, params.count) * params.stride4 + c);
        out[row * columns4 + c] = v;
        next_store(row, c, v);
    }
}
