//! needs merge
//! const D4
// Where the vectors of a product come from: the runs of attention_decode, merged while they are loaded.
// source_load(m, k): elements 4k to 4k + 3 of the attention of row m.
@group(0) @binding(1) var<storage, read> partials: array<vec4<f32>>;    // [m, heads, splits, D4 + 1] of four
@group(0) @binding(2) var<storage, read> step_rows: array<vec4<u32>>;   // [m] token, position, slot, place

fn source_load(m: u32, k: u32) -> vec4<f32> {
    let runs = min(params.splits, merge_runs(step_rows[m].y));
    let base = (m * params.heads + k / D4) * params.splits * (D4 + 1u);
    return merge_load(base, k % D4, runs);
}
