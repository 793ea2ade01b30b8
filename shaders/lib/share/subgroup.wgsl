//! needs neighbours
// How the invocations of a workgroup come by a chunk of eight groups of four of x: eight neighbours load one group each,
// and hand it round.
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
