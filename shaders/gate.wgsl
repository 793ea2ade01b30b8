//! needs activation
// Gated linear unit (arXiv:2002.05202): out[r, c] = activation(g) · u with g = x[r, 2c] and u = x[r, 2c + 1].
// Gate and up rows were interleaved when the weights were loaded.
// Grid: ceil(rows · columns / 64) workgroups; an invocation computes one element.
struct Params {
    rows: u32,
    columns: u32,
    in_stride2: u32,  // pairs from one row of x to the next
    out_stride: u32,  // elements from one row of out to the next
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec2<f32>>;           // [rows, 2 · columns]
@group(0) @binding(2) var<storage, read_write> out: array<f32>;         // [rows, columns]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let item = (id.y * grid.x + id.x) * 64u + local;
    let row = item / params.columns;
    if (row >= params.rows) {
        return;
    }
    let c = item % params.columns;
    let v = x[row * params.in_stride2 + c];
    out[row * params.out_stride + c] = activation(v.x) * v.y;
}
