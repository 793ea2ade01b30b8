//! needs tanh
// Scores of attention, capped softly (Gemma 2, arXiv:2408.00118): score_cap(v) = cap · tanh(v / cap), for four scores.
// score_at(v, q, position): the scores of query q at four positions from `position` on.
fn score_cap(v: vec4<f32>) -> vec4<f32> {
    let t = v / params.cap;
    return params.cap * vec4<f32>(tanh_exact(t.x), tanh_exact(t.y), tanh_exact(t.z), tanh_exact(t.w));
}

fn score_at(v: vec4<f32>, q: u32, position: u32) -> vec4<f32> {
    return score_cap(v);
}
