//! needs product slice team squares norm gather bias epilogue
//! const VECTORS LANES ROWS WORKGROUP STAGED
// As product_lanes, with the same order of additions, for eight rows of x (VECTORS) and more: an invocation keeps 8 × 8 sums,
// of ROWS (4) rows of W from each of two tiles. Weights become floats once for eight rows of x. The rows of x lie in
// workgroup memory, STAGED (1, 2, 4 or 8) of them at a time, where all teams read them.
// Grid: ceil(rows / (2 · TILE)) · ceil(m / VECTORS) workgroups; workgroups that read the same weights are consecutive.
const SPAN = LANES * PIECES4;   // vec4s of a row of x that the lanes take together

// Puts what pieces first to first + LANES - 1 are multiplied with into workgroup memory, for rows c to c + STAGED - 1 of x.
// c is a constant; if it is not a multiple of STAGED, its row is there already.
fn block_stage(c: u32, first: u32, local: u32) {
    if (c % STAGED != 0u) {
        return;
    }
    workgroupBarrier();
    for (var i = local; i < STAGED * SPAN; i += WORKGROUP) {
        let m = min(slice_first + c + i / SPAN, params.m - 1u);
        let lane = i % SPAN / PIECES4;
        let u = i % PIECES4;
        gather_sums[i / SPAN * SPAN + u * LANES + lane] = source_load(m, slice_k(first + lane, u));
    }
    workgroupBarrier();
}

fn block_vector(c: u32, lane: u32) -> SliceVector {
    let at = c % STAGED * SPAN + lane;
    var v: SliceVector;
    v.a = gather_sums[at];
    if (PIECES4 > 1u) {
        v.b = gather_sums[at + LANES];
    }
    if (PIECES4 > 2u) {
        v.c = gather_sums[at + 2u * LANES];
        v.d = gather_sums[at + 3u * LANES];
    }
    v.sum = slice_sum(v);
    return v;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let deep = (params.m + VECTORS - 1u) / VECTORS;
    let base = group / deep * 2u * TILE;
    let last = (params.k4 + PIECES4 - 1u) / PIECES4 - 1u;
    slice_first = group % deep * VECTORS;
    slice_last = last;
    let lane = local % LANES;
    let rows = slice_rows(base + local / LANES * ROWS);
    let more = slice_rows(base + TILE + local / LANES * ROWS);
    let squares = squares_load(slice_first, local);
    var low = array<vec4<f32>, 8>();        // sums of the first tile
    var high = array<vec4<f32>, 8>();
    for (var first = 0u; first <= last; first += LANES) {
        let at = first + lane;
        let a = slice_load(rows, at);
        let b = slice_load(more, at);
        let w = slice_weights(a);
        let z = slice_weights(b);
        block_stage(0u, first, local);
        let v0 = block_vector(0u, lane);
        low[0] = slice_column(low[0], w, a.scales, v0, at);
        high[0] = slice_column(high[0], z, b.scales, v0, at);
        block_stage(1u, first, local);
        let v1 = block_vector(1u, lane);
        low[1] = slice_column(low[1], w, a.scales, v1, at);
        high[1] = slice_column(high[1], z, b.scales, v1, at);
        block_stage(2u, first, local);
        let v2 = block_vector(2u, lane);
        low[2] = slice_column(low[2], w, a.scales, v2, at);
        high[2] = slice_column(high[2], z, b.scales, v2, at);
        block_stage(3u, first, local);
        let v3 = block_vector(3u, lane);
        low[3] = slice_column(low[3], w, a.scales, v3, at);
        high[3] = slice_column(high[3], z, b.scales, v3, at);
        block_stage(4u, first, local);
        let v4 = block_vector(4u, lane);
        low[4] = slice_column(low[4], w, a.scales, v4, at);
        high[4] = slice_column(high[4], z, b.scales, v4, at);
        block_stage(5u, first, local);
        let v5 = block_vector(5u, lane);
        low[5] = slice_column(low[5], w, a.scales, v5, at);
        high[5] = slice_column(high[5], z, b.scales, v5, at);
        block_stage(6u, first, local);
        let v6 = block_vector(6u, lane);
        low[6] = slice_column(low[6], w, a.scales, v6, at);
        high[6] = slice_column(high[6], z, b.scales, v6, at);
        block_stage(7u, first, local);
        let v7 = block_vector(7u, lane);
        low[7] = slice_column(low[7], w, a.scales, v7, at);
        high[7] = slice_column(high[7], z, b.scales, v7, at);
    }
    workgroupBarrier();                     // the rows of x have been read
    team_put(0u, &low, squares, local);
    squares_put(squares, local);
    workgroupBarrier();
    var early: Early;
    team_finish(slice_first, base, local, early);
    workgroupBarrier();
    team_put(0u, &high, squares, local);
    squares_put(squares, local);
    workgroupBarrier();
    team_finish(slice_first, base + TILE, local, early);
}
