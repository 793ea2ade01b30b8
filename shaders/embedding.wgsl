//! needs weights order
// out[r, :] = factor · W[token(r), :]: each row of the step takes its token's row of the table.
// Grid: rows · ceil(columns4 / 64) workgroups; an invocation copies four elements.
// A table that is cut by rows takes one dispatch for each part; a dispatch writes the rows whose token its part holds.
struct Params {
    rows: u32,
    columns4: u32,  // vec4s in a row of out
    stride4: u32,   // vec4s from one row of W to the next
    first: u32,     // first row of this part
    count: u32,     // rows of this part
    factor: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step_rows: array<vec4<u32>>;          // [rows] token, position, slot, 0
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;          // [rows, columns]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let across = (params.columns4 + 63u) / 64u;
    let row = group / across;
    let c = group % across * 64u + local;
    if (row >= params.rows || c >= params.columns4) {
        return;
    }
    let token = step_rows[row].x;
    if (token >= params.first && token - params.first < params.count) {
        let v = weights_load(order_row(token - params.first, params.count) * params.stride4 + c);
        out[row * params.columns4 + c] = params.factor * v;
    }
}
