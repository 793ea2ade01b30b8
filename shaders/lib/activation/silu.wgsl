//! needs silu
// Activation: silu (arXiv:1702.03118). activate(g).
fn activate(g: f32) -> f32 {
    return silu(g);
}
