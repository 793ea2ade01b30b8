// Bias of a product. bias_load(n): the bias of row n of W.
@group(2) @binding(0) var<storage, read> bias: array<f32>;       // [n]

fn bias_load(n: u32) -> f32 {
    return bias[n];
}
