//! needs weights order
// out[r, c] = W[r, c] as float32, from any weight format.
// Grid: ceil(rows · columns4 / 64) workgroups; an invocation computes four elements.
struct Params {
    rows: u32,        // rows of this part of W
    first: u32,       // row of out where the part begins
    columns4: u32,    // vec4s in a row of out
    stride4: u32,     // vec4s from one row of W to the next
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> out: array<vec4<f32>>;   // [rows of all parts, columns]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let item = (id.y * grid.x + id.x) * 64u + local;
    let row = item / params.columns4;
    if (row < params.rows) {
        let c = item % params.columns4;
        out[(params.first + row) * params.columns4 + c] = weights_load(order_row(row, params.rows) * params.stride4 + c);
    }
}
