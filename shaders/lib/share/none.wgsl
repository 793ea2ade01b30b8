// Loads of a chunk of x, up to eight vec4s, by each invocation for itself: share_take(m, k, lane) loads nothing;
// share_get(taken, m, k, i) returns vec4 k + i of row m; share_sum(value) returns the value.
const SHARE_LANES = 1u;

fn share_take(m: u32, k: u32, lane: u32) -> vec4<f32> {
    return vec4<f32>();
}

fn share_get(taken: vec4<f32>, m: u32, k: u32, i: u32) -> vec4<f32> {
    let at = k + i;
    return select(vec4<f32>(), source_load(m, min(at, params.k4 - 1u)), at < params.k4);
}

fn share_sum(value: f32) -> f32 {
    return value;
}
