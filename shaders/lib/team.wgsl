//! needs product squares norm gather bias epilogue
//! const VECTORS LANES ROWS PASSES WORKGROUP
// Teams of product_lanes, product_passes and product_block: LANES neighbouring invocations that add up the sums of ROWS rows
// of W with VECTORS rows of x, in each of PASSES passes. team_put(turn, sums, squares, local): adds up the lanes in pass
// `turn`; every invocation calls it in uniform control flow. team_finish(first, base, local, early): after squares_put and a
// barrier, the epilogue of rows base to base + TILE - 1.
const TEAMS = WORKGROUP / LANES;    // teams of LANES invocations
const STRIP = TEAMS * ROWS;         // rows n of all teams in a pass, a multiple of four
const TILE = STRIP * PASSES;        // rows n of all passes

fn team_put(turn: u32, sums: ptr<function, array<vec4<f32>, 8>>, squares: Squares, local: u32) {
    let slot = turn * TEAMS + local / LANES;
    for (var c = 0u; c < VECTORS; c++) {
        gather_put(slot * VECTORS + c, squares_join(sums[c], squares), local, ROWS + SQUARES_JOINED);
    }
}

fn team_finish(first: u32, base: u32, local: u32, loaded: Early) {
    var early = loaded;
    for (var item = local; item < TILE / 4u * VECTORS; item += WORKGROUP) {
        let n = base + item / VECTORS * 4u;
        let c = item % VECTORS;
        if (n < params.rows && first + c < params.m) {
            let count = min(4u, params.rows - n);
            let scale = norm_scale(squares_total(c));
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
