// Scores of attention, unchanged. score_cap(v): four scores.
fn score_cap(v: vec4<f32>) -> vec4<f32> {
    return v;
}
