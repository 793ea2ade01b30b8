// Elementwise operation: a · b. operation(item): vec4 `item` of the result.
@group(1) @binding(0) var<storage, read> a: array<vec4<f32>>;           // [rows, columns]
@group(1) @binding(1) var<storage, read> b: array<vec4<f32>>;           // as a

fn operation(item: u32) -> vec4<f32> {
    return a[item] * b[item];
}
