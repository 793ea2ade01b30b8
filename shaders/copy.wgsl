// out = x. Yardstick of memory bandwidth: each byte is read once and written once.
// Grid: ceil(count4 / 256) workgroups; an invocation copies 16 bytes.
struct Params {
    count4: u32,    // vec4s, padding included
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;           // [count4]
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;   // [count4]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let i = (id.y * grid.x + id.x) * 256u + local;
    if (i < params.count4) {
        out[i] = x[i];
    }
}
