//! needs product norm gather bias epilogue
//! const VECTORS LANES ROWS WORKGROUP
// Teams of product_lanes and product_block: LANES neighbouring invocations that add up the sums of ROWS rows of W with
// VECTORS rows of x. team_norms(first, local): an invocation's part of the sums of squares of the rows of x from `first` on.
// team_put(sums, norms, local): adds up the lanes; every invocation calls it in uniform control flow.
// team_finish(first, base, local, early): after a barrier, the epilogue of rows base to base + TILE - 1.
const TEAMS = WORKGROUP / LANES;    // teams of LANES invocations
const TILE = TEAMS * ROWS;          // rows n of all teams, a multiple of four
struct TeamNorms {                  // of four rows of x each
    low: vec4<f32>,
    high: vec4<f32>,
}

fn team_norms(first: u32, local: u32) -> TeamNorms {
    var norms: TeamNorms;
    for (var c = 0u; c < min(4u, VECTORS) * NORM_SUMS; c++) {
        norms.low[c] = norm_partial(min(first + c, params.m - 1u), local, WORKGROUP);
    }
    for (var c = 4u; c < VECTORS * NORM_SUMS; c++) {
        norms.high[c - 4u] = norm_partial(min(first + c, params.m - 1u), local, WORKGROUP);
    }
    return norms;
}

fn team_put(sums: ptr<function, array<vec4<f32>, 8>>, norms: TeamNorms, local: u32) {
    let team = local / LANES;
    for (var c = 0u; c < VECTORS; c++) {
        gather_put(team * VECTORS + c, sums[c], local, ROWS);
    }
    if (NORM_SUMS > 0u) {
        gather_put(TEAMS * VECTORS + team, norms.low, local, min(4u, VECTORS));
        if (VECTORS > 4u) {
            gather_put(TEAMS * VECTORS + TEAMS + team, norms.high, local, 4u);
        }
    }
}

// Sum of squares of vector c, over all teams.
fn team_norm_total(c: u32) -> f32 {
    var total = 0.0;
    for (var t = 0u; t < TEAMS * NORM_SUMS; t++) {
        total += gather_get(TEAMS * VECTORS + c / 4u * TEAMS + t)[c % 4u];
    }
    return total;
}

fn team_finish(first: u32, base: u32, local: u32, loaded: Early) {
    var early = loaded;
    for (var item = local; item < TILE / 4u * VECTORS; item += WORKGROUP) {
        let n = base + item / VECTORS * 4u;
        let c = item % VECTORS;
        if (n < params.rows && first + c < params.m) {
            let count = min(4u, params.rows - n);
            let scale = norm_scale(team_norm_total(c));
            var value: vec4<f32>;
            for (var j = 0u; j < 4u; j++) {
                let member = item / VECTORS * 4u + j;
                let total = gather_get(member / ROWS * VECTORS + c)[member % ROWS];
                value[j] = fma(total, scale, bias_load(first + c, params.first + n + min(j, count - 1u)));
            }
            if (VECTORS > 1u) {
                early = epilogue_early(first + c, params.first + n, count);
            }
            epilogue(first + c, params.first + n, value, count, early);
        }
    }
}
