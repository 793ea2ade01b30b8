//! needs neighbours
// Loads of a chunk of x, up to eight vec4s: share_take(m, k, lane) loads vec4 k + lane of row m, one of eight neighbours;
// share_get(taken, m, k, i) returns vec4 k + i, from lane i; share_sum(value) returns the sum over the eight.
const SHARE_LANES = 8u;

fn share_take(m: u32, k: u32, lane: u32) -> vec4<f32> {
    let at = k + lane;
    return select(vec4<f32>(), source_load(m, min(at, params.k4 - 1u)), at < params.k4);
}

fn share_get(taken: vec4<f32>, m: u32, k: u32, i: u32) -> vec4<f32> {
    return neighbours_get(taken, i);
}

fn share_sum(value: f32) -> f32 {
    return neighbours_sum(value);
}
