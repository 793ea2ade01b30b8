//! grid count/64
// out = x/2 · (1 + erf(x/√2)).
struct Params {
    count: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x;
    if (i < params.count) {
        out[i] = 0.5 * x[i] * (1.0 + erf(x[i] * 0.7071067812));
    }
}
