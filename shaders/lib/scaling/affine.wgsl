//! needs meta
//! const GROUP
// Joins the products of pieces, one from each of up to four rows, to the rows' sums. w = scale · q + bias, and pieces_part
// gives p = 1 + q / UNIT, so Σ w·x = UNIT · scale · Σ p·x + (bias - UNIT · scale) · Σ x.
// scaling_load(at): (UNIT · scale, bias - UNIT · scale) of a group. scaling_begin(sum): zero, to which Σ p·x is added.
// scaling_end(sum, part, x_sum, by): sum + Σ w·x, where part = Σ p·x, x_sum = Σ x and `by` holds each row's scaling_load.
const SCALING_GROUP4 = GROUP / 4u;    // vec4s in a quantization group

fn scaling_load(at: u32) -> vec2<f32> {
    let m = meta_load(at);
    return vec2<f32>(m.x * PIECES_UNIT, fma(m.x, -PIECES_UNIT, m.y));
}

fn scaling_begin(sum: vec4<f32>) -> vec4<f32> {
    return vec4<f32>();
}

fn scaling_end(sum: vec4<f32>, part: vec4<f32>, x_sum: f32, by: mat4x2<f32>) -> vec4<f32> {
    let t = transpose(by);
    return fma(part, t[0], fma(vec4<f32>(x_sum), t[1], sum));
}
