// How what a piece of four rows adds joins their sums, where weights are stored as they are: it goes on from them.
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
