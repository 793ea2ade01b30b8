//! needs activation
// Elementwise operation: the chosen activation. operation(item): vec4 `item` of the result.
@group(1) @binding(0) var<storage, read> x: array<vec4<f32>>;           // [rows, columns]

fn operation(item: u32) -> vec4<f32> {
    let v = x[item];
    return vec4<f32>(activation(v.x), activation(v.y), activation(v.z), activation(v.w));
}
