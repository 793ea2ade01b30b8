//! needs meta
//! const GROUP
// Joins the product of a quantization group to a row's sum: w = scale · q + bias, so Σ w·x = scale · Σ q·x + bias · Σ x.
// fold_join(sum, part, x_sum, group): sum + scale · part + bias · x_sum, with the scale and bias of the group.
// fold_scaled(q, i): scale · q + bias, for the elements 4i to 4i + 3.
const FOLD4 = GROUP / 4u;   // vec4s in a quantization group

fn fold_join(sum: f32, part: f32, x_sum: f32, group: u32) -> f32 {
    let m = meta_load(group);
    return fma(part, m.x, fma(x_sum, m.y, sum));
}

fn fold_scaled(q: vec4<f32>, i: u32) -> vec4<f32> {
    let m = meta_load(i / FOLD4);
    return fma(q, vec4<f32>(m.x), vec4<f32>(m.y));
}
