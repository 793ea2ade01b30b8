//! needs words
// Source of a product: a buffer. source_load(m, k): elements 4k to 4k + 3 of row m.
@group(0) @binding(1) var<storage, read> x: array<Words>;               // [m, k]

fn source_load(m: u32, k: u32) -> vec4<f32> {
    return words_floats(x[m * params.x_stride4 + k]);
}
