//! needs activation
// Elementwise operation: the chosen activation. operation(item): vec4 `item` of the result.
@group(1) @binding(0) var<storage, read> x: array<vec4<f32>>;           // [rows, columns]

fn operation(item: u32) -> vec4<f32> {
    let v = x[item];
    return vec4<f32>(activate(v.x), activate(v.y), activate(v.z), activate(v.w));
}
