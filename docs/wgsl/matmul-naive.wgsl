//! grid n/16 m/16
// out[m, n] = Σₖ x[m, k] · w[n, k]. An invocation computes one element.
struct Params {
    m: u32,
    n: u32,
    k: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;             // [m, k]
@group(0) @binding(2) var<storage, read> w: array<f32>;             // [n, k]
@group(0) @binding(3) var<storage, read_write> out: array<f32>;     // [m, n]

@compute @workgroup_size(16, 16)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.y;
    let column = id.x;
    if (row < params.m && column < params.n) {
        var sum = 0.0;
        for (var i = 0u; i < params.k; i++) {
            sum += x[row * params.k + i] * w[column * params.k + i];
        }
        out[row * params.n + column] = sum;
    }
}
