//! needs mask
//! const D4 RUN MERGED
// Source of a product: up to four runs of attention_decode, merged in their order while they are loaded:
// Σₛ e^(mₛ - M) accₛ / Σₛ e^(mₛ - M) sumₛ. source_load(m, k): elements 4k to 4k + 3 of the attention of row m.
@group(0) @binding(1) var<storage, read> partials: array<vec4<f32>>;    // [m, heads, splits, D4 + 1] vec4s
@group(0) @binding(2) var<storage, read> step_rows: array<vec4<u32>>;   // [m] token, position, slot, place

fn source_load(m: u32, k: u32) -> vec4<f32> {
    let position = step_rows[m].y;
    let runs = min(params.splits, position / RUN - mask_begin(m, position) / RUN + 1u);
    let base = (m * params.heads + k / D4) * params.splits * (D4 + 1u);
    var end: array<vec2<f32>, MERGED>;
    var top = partials[base + D4].x;
    for (var s = 0u; s < MERGED; s++) {     // a fixed number, so that drivers unroll the loops around it
        end[s] = partials[base + min(s, runs - 1u) * (D4 + 1u) + D4].xy;
        top = max(top, end[s].x);
    }
    var acc = vec4<f32>();
    var sum = 0.0;
    for (var s = 0u; s < MERGED; s++) {
        let weight = select(exp(end[s].x - top), 1.0, end[s].x == top);     // exactly 1, so a single run keeps its bits
        let keep = select(0.0, weight, s < runs);
        acc = fma(partials[base + min(s, runs - 1u) * (D4 + 1u) + k % D4], vec4<f32>(keep), acc);
        sum = fma(end[s].y, keep, sum);
    }
    return acc / sum;
}
