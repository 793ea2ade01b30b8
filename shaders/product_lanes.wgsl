//! needs product slice order norm gather bias epilogue
//! const VECTORS LANES ROWS AHEAD WORKGROUP
// out[m, n] = scale(m) · Σₖ x[m, k] · W[n, k] + bias[m, n], then the epilogue; for GPUs and few rows m. A team of LANES
// neighbouring invocations takes ROWS rows n and shares k, so that neighbours read neighbouring memory. Lane l takes
// pieces l, l + LANES, … in order, AHEAD (1, 2 or 4) of them at once. Then the team adds up its lanes. The order of
// additions depends on LANES and the length of a piece (for norms, on WORKGROUP), never on m.
// Grid: ceil(rows / TILE) · ceil(m / VECTORS) workgroups; workgroups that read the same weights are consecutive.
const TEAMS = WORKGROUP / LANES;    // teams of LANES invocations
const TILE = TEAMS * ROWS;          // rows n of a workgroup, a multiple of four

// Sum of squares of vector c, over all teams.
fn norm_total(c: u32) -> f32 {
    var total = 0.0;
    for (var t = 0u; t < TEAMS * NORM_SUMS; t++) {
        total += gather_get(TEAMS * VECTORS + c / 4u * TEAMS + t)[c % 4u];
    }
    return total;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let deep = (params.m + VECTORS - 1u) / VECTORS;
    let base = group / deep * TILE;
    slice_first = group % deep * VECTORS;
    slice_last = (params.k4 + PIECES4 - 1u) / PIECES4 - 1u;
    let team = local / LANES;
    let lane = local % LANES;
    for (var i = 0u; i < 4u; i++) {
        let held = order_row(min(base + team * ROWS + i, params.rows - 1u), params.rows);
        slice_begins[i] = held * params.stride;
        slice_scales[i] = held * params.groups;
    }
    var early: Early;                       // loaded before the products, as the norms are, to hide latency
    let own = base + local * 4u;            // if VECTORS is 1, the invocation finishes rows own to own + 3
    if (VECTORS == 1u && local < TILE / 4u && own < params.rows) {
        early = epilogue_early(slice_first, params.first + own, min(4u, params.rows - own));
    }
    var norm_low: vec4<f32>;
    var norm_high: vec4<f32>;
    for (var c = 0u; c < min(4u, VECTORS) * NORM_SUMS; c++) {
        norm_low[c] = norm_partial(min(slice_first + c, params.m - 1u), local, WORKGROUP);
    }
    for (var c = 4u; c < VECTORS * NORM_SUMS; c++) {
        norm_high[c - 4u] = norm_partial(min(slice_first + c, params.m - 1u), local, WORKGROUP);
    }
    var sums = array<vec4<f32>, 8>();
    for (var at = lane; at <= slice_last; at += LANES * AHEAD) {
        let a = slice_load(at);
        if (AHEAD == 1u) {
            slice_add(&sums, a, at);
        } else {
            let b = slice_load(at + LANES);
            if (AHEAD == 2u) {
                slice_add(&sums, a, at);
                slice_add(&sums, b, at + LANES);
            } else {
                let c = slice_load(at + 2u * LANES);
                let d = slice_load(at + 3u * LANES);
                slice_add(&sums, a, at);
                slice_add(&sums, b, at + LANES);
                slice_add(&sums, c, at + 2u * LANES);
                slice_add(&sums, d, at + 3u * LANES);
            }
        }
    }
    for (var c = 0u; c < VECTORS; c++) {
        gather_put(team * VECTORS + c, sums[c], local);
    }
    if (NORM_SUMS > 0u) {
        gather_put(TEAMS * VECTORS + team, norm_low, local);
        if (VECTORS > 4u) {
            gather_put(TEAMS * VECTORS + TEAMS + team, norm_high, local);
        }
    }
    workgroupBarrier();
    for (var item = local; item < TILE / 4u * VECTORS; item += WORKGROUP) {
        let n = base + item / VECTORS * 4u;
        let c = item % VECTORS;
        if (n < params.rows && slice_first + c < params.m) {
            let count = min(4u, params.rows - n);
            let scale = norm_scale(norm_total(c));
            var value: vec4<f32>;
            for (var j = 0u; j < 4u; j++) {
                let member = item / VECTORS * 4u + j;
                let total = gather_get(member / ROWS * VECTORS + c)[member % ROWS];
                value[j] = fma(total, scale, bias_load(slice_first + c, params.first + n + min(j, count - 1u)));
            }
            if (VECTORS > 1u) {
                early = epilogue_early(slice_first + c, params.first + n, count);
            }
            epilogue(slice_first + c, params.first + n, value, count, early);
        }
    }
}
