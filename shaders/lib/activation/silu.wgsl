//! needs silu
// Activation: silu (arXiv:1702.03118). activation(g).
fn activation(g: f32) -> f32 {
    return silu(g);
}
