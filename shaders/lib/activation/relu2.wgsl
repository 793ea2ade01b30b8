// Activation: squared ReLU (arXiv:2109.08668). activation(g).
fn activation(g: f32) -> f32 {
    let v = max(g, 0.0);
    return v * v;
}
