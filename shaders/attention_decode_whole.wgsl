//! needs decode run mask score
//! const QUERIES RUN
// Decode attention for GPUs: the formula and the results of attention_decode, but a workgroup takes a whole run at once.
// 1. Each invocation computes the scores of one position for up to four heads. 2. The workgroup finds each head's maximum.
// 3. Scores become weights. 4. For each load along V and each head, SLICES invocations sum the weighted values of their
// share of the positions. 5. The slices are added up.
// Grid: rows · kv_heads · ceil(group / QUERIES) · splits workgroups; a workgroup takes QUERIES heads that share K and V.
const LOWEST = -1.0e30;
var<workgroup> tops: array<vec4<f32>, 16>;
var<workgroup> accs: array<vec4<f32>, RUN * KV_WIDE>;       // [slice, query, D4]
var<workgroup> sums: array<f32, RUN>;                       // [slice, query]

@compute @workgroup_size(RUN)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let index = id.y * grid.x + id.x;
    let split = index % params.splits;
    let first = index / params.splits % params.tiles * QUERIES;
    run_kv_head = index / (params.splits * params.tiles) % params.kv_heads;
    let row = index / (params.splits * params.tiles * params.kv_heads);
    if (row >= params.rows) {
        return;
    }
    let state = step_rows[row];
    let seen = mask_begin(row, state.y);
    let run = seen / RUN + split;
    if (run * RUN > state.y) {
        return;
    }
    let begin = max(run * RUN, seen);
    let count = min((run + 1u) * RUN, state.y + 1u) - begin;
    run_table = state.z * params.table;
    for (var item = local; item < QUERIES * D4; item += RUN) {
        let head = run_kv_head * params.group + min(first + item / D4, params.group - 1u);
        run_queries[item] = q[row * params.stride4 + head * D4 + item % D4] * params.scale;
    }
    workgroupBarrier();
    let c = local % D_LOADS;
    let i = local / D_LOADS % QUERIES;
    let slice = local / (D_LOADS * QUERIES);
    var now = run_values(begin, count, slice, c);       // values for step 4, fetched early
    var next = run_values(begin, count, slice + 4u * SLICES, c);
    var found = vec4<f32>();
    let position = begin + min(local, count - 1u);
    let key = run_at(0u, position);
    for (var d = 0u; d + 3u < D_LOADS; d += 4u) {   // four loads at once
        let k0 = kv[key + d];
        let k1 = kv[key + d + 1u];
        let k2 = kv[key + d + 2u];
        let k3 = kv[key + d + 3u];
        found = run_score(found, k0, d);
        found = run_score(found, k1, d + 1u);
        found = run_score(found, k2, d + 2u);
        found = run_score(found, k3, d + 3u);
    }
    for (var d = D_LOADS / 4u * 4u; d < D_LOADS; d++) {
        found = run_score(found, kv[key + d], d);
    }
    found = score_cap(found);
    run_weights[local] = select(vec4<f32>(LOWEST), found, local < count);
    workgroupBarrier();
    if (local < 16u) {
        var top = run_weights[local];
        for (var i = 16u; i < RUN; i += 16u) {
            top = max(top, run_weights[local + i]);
        }
        tops[local] = top;
    }
    workgroupBarrier();
    var top = tops[0];
    for (var i = 1u; i < 16u; i++) {
        top = max(top, tops[i]);
    }
    run_weights[local] = select(vec4<f32>(), exp(found - top), local < count);
    workgroupBarrier();

    if (slice < SLICES) {
        var acc = array<vec4<f32>, KV_WIDE>();
        var sum = 0.0;
        for (var p = slice; p < count; p += 4u * SLICES) {
            let v = now;
            now = next;
            next = run_values(begin, count, p + 8u * SLICES, c);    // fetched two iterations ahead
            let w0 = run_weights[p][i];
            let w1 = run_weight(p + SLICES, count, i);
            let w2 = run_weight(p + 2u * SLICES, count, i);
            let w3 = run_weight(p + 3u * SLICES, count, i);
            sum += (w0 + w1) + (w2 + w3);
            for (var u = 0u; u < KV_WIDE; u++) {
                acc[u] = fma(kv_wide_part(v.a, u), vec4<f32>(w0), acc[u]);
                acc[u] = fma(kv_wide_part(v.b, u), vec4<f32>(w1), acc[u]);
                acc[u] = fma(kv_wide_part(v.c, u), vec4<f32>(w2), acc[u]);
                acc[u] = fma(kv_wide_part(v.d, u), vec4<f32>(w3), acc[u]);
            }
        }
        for (var u = 0u; u < KV_WIDE; u++) {
            accs[(slice * QUERIES + i) * D4 + c * KV_WIDE + u] = acc[u];
        }
        if (c == 0u) {
            sums[slice * QUERIES + i] = sum;
        }
    }
    workgroupBarrier();
    for (var item = local; item < QUERIES * D4; item += RUN) {
        let query = item / D4;
        var acc = accs[item];
        var sum = sums[query];
        for (var s = 1u; s < SLICES; s++) {
            acc += accs[s * QUERIES * D4 + item];
            sum += sums[s * QUERIES + query];
        }
        if (first + query < params.group) {
            let head = run_kv_head * params.group + first + query;
            let base = ((row * params.kv_heads * params.group + head) * params.splits + split);
            if (params.splits == 1u) {      // nothing to merge
                partials[base * D4 + item % D4] = acc / sum;    // as attention_merge divides a single run
            } else {
                partials[base * (D4 + 1u) + item % D4] = acc;
                if (item % D4 == 0u) {
                    partials[base * (D4 + 1u) + D4] = vec4<f32>(top[query], sum, 0.0, 0.0);
                }
            }
        }
    }
}
