// Radix selection over a row of `scores`, by a workgroup of SELECT_WIDTH invocations: each sweep determines eight bits of
// the key. A cut is (key, id). A token is inside if its key is higher, or if its key is equal and its id is not higher.
const SELECT_WIDTH = 256u;
@group(0) @binding(2) var<storage, read> scores: array<f32>;            // [rows, vocab] processed
var<workgroup> select_bins: array<atomic<u32>, 256>;
var<workgroup> select_floats: array<f32, SELECT_WIDTH>;
var<workgroup> select_ids: array<u32, SELECT_WIDTH>;
var<workgroup> select_found_key: u32;
var<workgroup> select_found_rest: u32;

// Key of a score: its bits as an integer that orders as the floats do.
fn select_key_of(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}

// Whether a token is inside a cut.
fn select_kept(key: u32, id: u32, cut: vec2<u32>) -> bool {
    return key > cut.x || (key == cut.x && id <= cut.y);
}

// Maximum over the workgroup.
fn select_top(local: u32, value: f32) -> f32 {
    select_floats[local] = value;
    workgroupBarrier();
    var top = select_floats[0];
    for (var i = 1u; i < SELECT_WIDTH; i++) {
        top = max(top, select_floats[i]);
    }
    workgroupBarrier();
    return top;
}

// Sum over the workgroup.
fn select_total(local: u32, value: f32) -> f32 {
    select_floats[local] = value;
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < SELECT_WIDTH; i++) {
        total += select_floats[i];
    }
    workgroupBarrier();
    return total;
}

// Weight of a token: 1 for top-k (scale 0), its mass for top-p.
fn select_weight(value: f32, top: f32, scale: f32) -> u32 {
    return select(u32(exp(value - top) * scale + 0.5), 1u, scale == 0.0);
}

// The key at which the weights of the tokens inside `cut`, added up from the highest key down, reach `goal`. Sets
// select_found_rest to the weight that this key must contribute: `goal` less the weights of all higher keys.
fn select_threshold(local: u32, vocab: u32, base: u32, cut: vec2<u32>, top: f32, scale: f32, goal: u32) -> u32 {
    var prefix = 0u;
    var rest = goal;
    for (var shift = 24; shift >= 0; shift -= 8) {
        atomicStore(&select_bins[local], 0u);
        workgroupBarrier();
        let mask = select(0xffffffffu << u32(shift + 8), 0u, shift == 24);
        for (var t = local; t < vocab; t += SELECT_WIDTH) {
            let value = scores[base + t];
            let key = select_key_of(value);
            if ((key & mask) == prefix && select_kept(key, t, cut)) {
                atomicAdd(&select_bins[(key >> u32(shift)) & 255u], select_weight(value, top, scale));
            }
        }
        workgroupBarrier();
        if (local == 0u) {
            var bin = 255u;
            var left = rest;
            for (; bin > 0u; bin--) {
                let mass = atomicLoad(&select_bins[bin]);
                if (mass >= left) {
                    break;
                }
                left -= mass;
            }
            select_found_key = prefix | (bin << u32(shift));
            select_found_rest = left;
        }
        workgroupBarrier();
        prefix = select_found_key;
        rest = select_found_rest;
        workgroupBarrier();
    }
    return prefix;
}

// The id of the n-th token (n from 1) inside `cut` that has this key; 0xffffffff if there are fewer.
fn select_id(local: u32, vocab: u32, base: u32, key: u32, cut: vec2<u32>, n: u32) -> u32 {
    let span = (vocab + SELECT_WIDTH - 1u) / SELECT_WIDTH;
    let end = min((local + 1u) * span, vocab);
    var count = 0u;
    for (var t = local * span; t < end; t++) {
        count += select(0u, 1u, select_key_of(scores[base + t]) == key && select_kept(key, t, cut));
    }
    select_ids[local] = count;
    if (local == 0u) {
        select_found_key = 0xffffffffu;
    }
    workgroupBarrier();
    var before = 0u;
    for (var i = 0u; i < local; i++) {
        before += select_ids[i];
    }
    if (before < n && n <= before + count) {
        var seen = before;
        for (var t = local * span; t < end; t++) {
            if (select_key_of(scores[base + t]) == key && select_kept(key, t, cut)) {
                seen++;
                if (seen == n) {
                    select_found_key = t;
                    break;
                }
            }
        }
    }
    workgroupBarrier();
    let found = select_found_key;
    workgroupBarrier();
    return found;
}
