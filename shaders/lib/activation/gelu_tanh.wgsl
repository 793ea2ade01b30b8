// Activation: GELU in its tanh form (arXiv:1606.08415): activation(g) = g/2 · (1 + tanh y) = g / (1 + e^-2y) with
// y = √(2/π) · (g + 0.044715 g³).
fn activation(g: f32) -> f32 {
    let y = 0.7978845608 * (g + 0.044715 * g * g * g);
    let t = exp(-2.0 * abs(y));  // never above 1, so nothing overflows
    return g * (select(t, 1.0, y >= 0.0) / (1.0 + t));
}
