// Bias of a product: a vector, or a row for every row m of the product. bias_load(m, n): the bias of row n of W.
@group(2) @binding(0) var<storage, read> bias: array<f32>;       // [n], or [m, n]

fn bias_load(m: u32, n: u32) -> f32 {
    return bias[m * params.bias_stride + n];
}
