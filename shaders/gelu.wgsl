//! needs erf tanh
// GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415), elementwise.
// TANH false: out = x/2 · (1 + erf(x/√2)).
// TANH true: out = x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
// Grid: ceil(count / 64) workgroups; an invocation computes one element.
override TANH: bool = false;
struct Params {
    count: u32,     // elements, padding included
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;             // [rows, columns]
@group(0) @binding(2) var<storage, read_write> out: array<f32>;     // [rows, columns]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let item = (id.y * grid.x + id.x) * 64u + local;
    if (item < params.count) {
        let v = x[item];
        var gate: f32;
        if (TANH) {
            gate = tanh_exact(0.7978845608 * (v + 0.044715 * v * v * v));
        } else {
            gate = erf_exact(v * 0.7071067812);
        }
        out[item] = 0.5 * v * (1.0 + gate);
    }
}
