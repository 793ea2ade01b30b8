// silu(g) = g / (1 + e^-g)
fn silu(g: f32) -> f32 {
    let t = exp(-abs(g));  // never above 1, so nothing overflows
    return g * (select(t, 1.0, g >= 0.0) / (1.0 + t));
}
