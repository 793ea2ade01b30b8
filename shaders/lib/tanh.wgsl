// tanh_exact(v): tanh without overflow, relative error below 1e-6. WGSL's own tanh may overflow in e^v and lose small v.
fn tanh_exact(v: f32) -> f32 {
    let e = exp(-2.0 * abs(v));
    let s = v * v;
    let small = v * (1.0 + s * (-0.33333333 + s * (0.13333333 - 0.053968254 * s)));   // the Taylor series
    return select(sign(v) * (1.0 - e) / (1.0 + e), small, abs(v) < 0.125);
}
