//! needs erf
// Activation: GELU (arXiv:1606.08415): activation(g) = g/2 · (1 + erf(g/√2)).
fn activation(g: f32) -> f32 {
    return 0.5 * g * (1.0 + erf_exact(g * 0.7071067812));
}
