// Elementwise operation: x · factor. operation(item): vec4 `item` of the result.
@group(1) @binding(0) var<storage, read> x: array<vec4<f32>>;           // [rows, columns]

fn operation(item: u32) -> vec4<f32> {
    return x[item] * params.factor;
}
