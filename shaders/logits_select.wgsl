//! needs settings select
//! const LIKELY
// Selects the tokens that may be drawn: top-k, then top-p (Holtzman et al. 2019, arXiv:1904.09751) of the tokens left, then
// min-p (arXiv:2407.01082). The result is one cut of each row, in the order of falling score and, among equal scores,
// rising id. Counts and masses are integers, so the order of additions does not matter.
// The kernel also computes log Σ e^logit of the raw logits, and the likeliest tokens by raw logit with their
// log-probabilities, logit - log Σ e^logit.
// Grid: one workgroup per row; an invocation takes every SELECT_WIDTH-th token of a sweep.
const ONE = 1073741824.0;   // the integer mass of probability 1
struct Params {
    rows: u32,
    vocab: u32,
    stride: u32,            // elements from one row of logits to the next
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;            // [rows, vocab] raw
@group(0) @binding(3) var<storage, read> settings: array<Settings>;     // [rows]
@group(0) @binding(4) var<storage, read_write> cuts: array<vec4<u32>>;  // [rows] key, id, bits of log Σ e^logit, 0
@group(0) @binding(5) var<storage, read_write> likely: array<vec2<u32>>;    // [rows, LIKELY] id, bits of log-probability

// The cut after the first tokens inside `cut` whose weights add up to `goal`.
fn cut_at(local: u32, base: u32, cut: vec2<u32>, top: f32, scale: f32, goal: u32) -> vec2<u32> {
    let key = select_threshold(local, params.vocab, base, cut, top, scale, goal);
    let rest = select_found_rest;
    let value = bitcast<f32>(select(~key, key ^ 0x80000000u, key >= 0x80000000u));
    let weight = max(1u, select_weight(value, top, scale));
    return vec2<u32>(key, select_id(local, params.vocab, base, key, cut, (rest + weight - 1u) / weight));
}

@compute @workgroup_size(SELECT_WIDTH)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let row = id.y * grid.x + id.x;
    if (row >= params.rows) {
        return;
    }
    let s = settings[row];
    let base = row * params.stride;
    var top = -3.4028234e38;
    var raw_top = top;
    for (var t = local; t < params.vocab; t += SELECT_WIDTH) {
        top = max(top, scores[base + t]);
        raw_top = max(raw_top, logits[base + t]);
    }
    top = select_top(local, top);
    raw_top = select_top(local, raw_top);
    var cut = vec2<u32>(0u, 0xffffffffu);
    if (s.top_k != 0u && s.top_k < params.vocab) {
        cut = cut_at(local, base, cut, top, 0.0, s.top_k);
    }
    if (s.top_p < 1.0) {
        var sum = 0.0;
        for (var t = local; t < params.vocab; t += SELECT_WIDTH) {
            let value = scores[base + t];
            sum += select(0.0, exp(value - top), select_kept(select_key_of(value), t, cut));
        }
        let scale = ONE / select_total(local, sum);
        let found = cut_at(local, base, cut, top, scale, max(1u, u32(ceil(s.top_p * ONE))));
        // Rounded masses may add up to less than the goal; then nothing is found, and all tokens inside the cut stay.
        if (select_kept(found.x, found.y, cut)) {
            cut = found;
        }
    }
    if (s.min_p > 0.0) {
        let key = select_key_of(top + log(s.min_p));
        if (key > cut.x) {
            cut = vec2<u32>(key, 0xffffffffu);
        }
    }
    var sum = 0.0;
    for (var t = local; t < params.vocab; t += SELECT_WIDTH) {
        sum += exp(logits[base + t] - raw_top);
    }
    let log_sum = raw_top + log(select_total(local, sum));
    if (local == 0u) {
        cuts[row] = vec4<u32>(cut, bitcast<u32>(log_sum), 0u);
    }
    likeliest(local, row, base, s.logprobs, log_sum);
}

// Finds the likeliest tokens by raw logit. Each sweep finds the best token that ranks below the previous one.
fn likeliest(local: u32, row: u32, base: u32, count: u32, log_sum: f32) {
    var last = 3.4028234e38;
    var last_id = 0u;
    for (var n = 0u; n < count; n++) {
        var best = -3.4028234e38;
        var best_id = 0xffffffffu;
        for (var t = local; t < params.vocab; t += SELECT_WIDTH) {
            let l = logits[base + t];
            let behind = n == 0u || l < last || (l == last && t > last_id);
            if (behind && (l > best || (l == best && t < best_id))) {
                best = l;
                best_id = t;
            }
        }
        select_floats[local] = best;
        select_ids[local] = best_id;
        workgroupBarrier();
        for (var i = 0u; i < SELECT_WIDTH; i++) {
            if (select_floats[i] > best || (select_floats[i] == best && select_ids[i] < best_id)) {
                best = select_floats[i];
                best_id = select_ids[i];
            }
        }
        workgroupBarrier();
        last = best;
        last_id = best_id;
        if (local == 0u) {
            likely[row * LIKELY + n] = vec2<u32>(best_id, bitcast<u32>(best - log_sum));
        }
    }
}
