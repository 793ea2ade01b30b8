//! needs meta
//! const GROUP
// How the product of a quantization group joins the row's sum: w = scale · q + bias, so Σ w·x = scale · Σ q·x + bias · Σ x.
const FOLD4 = GROUP / 4u;   // groups of four in a quantization group

fn fold_join(sum: f32, part: f32, x_sum: f32, group: u32) -> f32 {
    let m = meta_load(group);
    return fma(part, m.x, fma(x_sum, m.y, sum));
}

fn fold_scaled(q: vec4<f32>, i: u32) -> vec4<f32> {
    let m = meta_load(i / FOLD4);
    return fma(q, vec4<f32>(m.x), vec4<f32>(m.y));
}
