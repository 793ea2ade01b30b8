// erf_exact(v): the error function, which WGSL lacks, by polynomial 7.1.26 of Abramowitz and Stegun; off by at most 1.5e-7.
fn erf_exact(v: f32) -> f32 {
    let a = abs(v);
    let t = 1.0 / (1.0 + 0.3275911 * a);
    let p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return sign(v) * (1.0 - p * exp(-a * a));
}
// tanh_exact(v): tanh without overflow, relative error below 1e-6. WGSL's own tanh may overflow in e^v and lose small v.
fn tanh_exact(v: f32) -> f32 {
    let e = exp(-2.0 * abs(v));
    let s = v * v;
    let small = v * (1.0 + s * (-0.33333333 + s * (0.13333333 - 0.053968254 * s)));   // the Taylor series
    return select(sign(v) * (1.0 - e) / (1.0 + e), small, abs(v) < 0.125);
}
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
