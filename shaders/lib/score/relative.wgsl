//! const REACH
// Scores of attention, plus a bias for the distance from query to key (T5, arXiv:1910.10683; MPNet, arXiv:2004.09297).
// score_at(v, q, position): the scores of query q at four positions from `position` on. Distances beyond REACH have the
// bias of REACH. The kernel defines `head`, and flash_position(q): the position of query q.
@group(0) @binding(6) var<storage, read> relative: array<f32>;          // [heads, 2 · REACH] of distances from -REACH on

fn score_at(v: vec4<f32>, q: u32, position: u32) -> vec4<f32> {
    let distance = vec4<i32>(i32(position) - i32(flash_position(q))) + vec4<i32>(0, 1, 2, 3);
    let reach = vec4<i32>(i32(REACH));
    let at = vec4<u32>(clamp(distance + reach, vec4<i32>(), 2 * reach - 1)) + vec4<u32>(head * 2u * REACH);
    return v + vec4<f32>(relative[at.x], relative[at.y], relative[at.z], relative[at.w]);
}
