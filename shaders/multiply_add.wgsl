// out[i] = the sum of the results of eight chains v = v · a + b. Yardstick of arithmetic: 32 · steps multiply-adds per
// invocation, without memory access.
// Grid: groups workgroups; an invocation computes eight chains of vec4s.
struct Params {
    groups: u32,
    steps: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;           // [1] a, b, 0, 0
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;   // [groups · 64]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let a = vec4<f32>(x[0].x);
    let b = vec4<f32>(x[0].y);
    var v0 = vec4<f32>(0.0);
    var v1 = vec4<f32>(0.125);
    var v2 = vec4<f32>(0.25);
    var v3 = vec4<f32>(0.375);
    var v4 = vec4<f32>(0.5);
    var v5 = vec4<f32>(0.625);
    var v6 = vec4<f32>(0.75);
    var v7 = vec4<f32>(0.875);
    for (var i = 0u; i < params.steps; i++) {
        v0 = fma(v0, a, b);
        v1 = fma(v1, a, b);
        v2 = fma(v2, a, b);
        v3 = fma(v3, a, b);
        v4 = fma(v4, a, b);
        v5 = fma(v5, a, b);
        v6 = fma(v6, a, b);
        v7 = fma(v7, a, b);
    }
    if (group < params.groups) {
        out[group * 64u + local] = ((v0 + v1) + (v2 + v3)) + ((v4 + v5) + (v6 + v7));
    }
}
