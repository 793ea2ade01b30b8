// Joins the products of pieces, one from each of up to four rows, to the rows' sums, for weights that are not quantized.
// scaling_load(at): nothing. scaling_begin(sum): sum, to which the products are added. scaling_end(sum, part, …): part.
const SCALING_GROUP4 = 1u;

fn scaling_load(at: u32) -> vec2<f32> {
    return vec2<f32>();
}

fn scaling_begin(sum: vec4<f32>) -> vec4<f32> {
    return sum;
}

fn scaling_end(sum: vec4<f32>, part: vec4<f32>, x_sum: f32, by: mat4x2<f32>) -> vec4<f32> {
    return part;
}
