// Elementwise operation: x · factor. operation(item): vec4 `item` of the result.
@group(1) @binding(0) var<storage, read> x: array<vec4<f32>>;           // [rows, columns]

fn operation(item: u32) -> vec4<f32> {
    return x[item] * params.factor;
}
//! needs operation
// out = operation(item), elementwise. Padding is included, because every operation turns zeros into zeros.
// Grid: ceil(count4 / 64) workgroups; an invocation computes four elements.
struct Params {
    count4: u32,    // vec4s, padding included
    factor: f32,    // for lib/operation/scale
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> out: array<vec4<f32>>;   // [rows, columns]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let item = (id.y * grid.x + id.x) * 64u + local;
    if (item < params.count4) {
        out[item] = operation(item);
    }
}
