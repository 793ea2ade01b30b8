//! needs meta
//! const GROUP
// How what a piece of four rows adds joins their sums, where w = scale · q + bias and the piece gave p = 1 + q / UNIT:
// Σ w·x = UNIT · scale · Σ p·x + (bias - UNIT · scale) · Σ x.
const SCALING_GROUP4 = GROUP / 4u;    // groups of four in a quantization group

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
