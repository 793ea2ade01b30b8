//! grid count/64
// out = x/2 · (1 + erf(x/√2)). erf is the polynomial 7.1.26 of Abramowitz and Stegun, off by at most 1.5e-7.
struct Params {
    count: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

fn error_function(v: f32) -> f32 {
    let a = abs(v);
    let t = 1.0 / (1.0 + 0.3275911 * a);
    let p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return sign(v) * (1.0 - p * exp(-a * a));   // the exponent is never positive, so exp cannot overflow
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x;
    if (i < params.count) {
        out[i] = 0.5 * x[i] * (1.0 + error_function(x[i] * 0.7071067812));
    }
}
