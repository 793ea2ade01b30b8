// The bias of a product: one value for every row of W.
@group(2) @binding(0) var<storage, read> bias: array<f32>;

fn bias_load(n: u32) -> f32 {
    return bias[n];
}
