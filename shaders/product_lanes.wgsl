//! needs product slice team squares norm gather bias epilogue
//! const VECTORS LANES ROWS AHEAD WORKGROUP
// out[m, n] = scale(m) · Σₖ x[m, k] · W[n, k] + bias[m, n], then the epilogue; for GPUs and few rows m. A team of LANES
// neighbouring invocations takes ROWS rows n and shares k, so that neighbours read neighbouring memory. Lane l takes
// pieces l, l + LANES, … in order, AHEAD (1, 2, 4 or 8) of them at once. Then the team adds up its lanes. The order of
// additions depends on LANES and the length of a piece (for norms, on WORKGROUP), never on m.
// Grid: ceil(rows / TILE) · ceil(m / VECTORS) workgroups; workgroups that read the same weights are consecutive.

// Adds the products of a slice with all rows of x.
fn add_slice(sums: ptr<function, array<vec4<f32>, 8>>, s: Slice, at: u32) {
    let w = slice_weights(s);
    sums[0] = slice_column(sums[0], w, s.scales, slice_vector(0u, at), at);
    if (VECTORS > 1u) {
        sums[1] = slice_column(sums[1], w, s.scales, slice_vector(1u, at), at);
    }
    if (VECTORS > 2u) {
        sums[2] = slice_column(sums[2], w, s.scales, slice_vector(2u, at), at);
        sums[3] = slice_column(sums[3], w, s.scales, slice_vector(3u, at), at);
    }
    if (VECTORS > 4u) {
        sums[4] = slice_column(sums[4], w, s.scales, slice_vector(4u, at), at);
        sums[5] = slice_column(sums[5], w, s.scales, slice_vector(5u, at), at);
        sums[6] = slice_column(sums[6], w, s.scales, slice_vector(6u, at), at);
        sums[7] = slice_column(sums[7], w, s.scales, slice_vector(7u, at), at);
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let deep = (params.m + VECTORS - 1u) / VECTORS;
    let base = group / deep * TILE;
    slice_first = group % deep * VECTORS;
    slice_last = (params.k4 + PIECES4 - 1u) / PIECES4 - 1u;
    let lane = local % LANES;
    let rows = slice_rows(base + local / LANES * ROWS);
    var early: Early;                       // loaded before the products, as the squares are, to hide latency
    let own = base + local * 4u;            // if VECTORS is 1, the invocation finishes rows own to own + 3
    if (VECTORS == 1u && local < TILE / 4u && own < params.rows) {
        early = epilogue_early(slice_first, params.first + own, min(4u, params.rows - own));
    }
    let squares = squares_load(slice_first, local);
    var sums = array<vec4<f32>, 8>();
    for (var at = lane; at <= slice_last; at += LANES * AHEAD) {
        let a = slice_load(rows, at);
        if (AHEAD == 1u) {
            add_slice(&sums, a, at);
        } else {
            let b = slice_load(rows, at + LANES);
            if (AHEAD == 2u) {
                add_slice(&sums, a, at);
                add_slice(&sums, b, at + LANES);
            } else {
                let c = slice_load(rows, at + 2u * LANES);
                let d = slice_load(rows, at + 3u * LANES);
                if (AHEAD == 4u) {
                    add_slice(&sums, a, at);
                    add_slice(&sums, b, at + LANES);
                    add_slice(&sums, c, at + 2u * LANES);
                    add_slice(&sums, d, at + 3u * LANES);
                } else {
                    let e = slice_load(rows, at + 4u * LANES);
                    let f = slice_load(rows, at + 5u * LANES);
                    let g = slice_load(rows, at + 6u * LANES);
                    let h = slice_load(rows, at + 7u * LANES);
                    add_slice(&sums, a, at);
                    add_slice(&sums, b, at + LANES);
                    add_slice(&sums, c, at + 2u * LANES);
                    add_slice(&sums, d, at + 3u * LANES);
                    add_slice(&sums, e, at + 4u * LANES);
                    add_slice(&sums, f, at + 5u * LANES);
                    add_slice(&sums, g, at + 6u * LANES);
                    add_slice(&sums, h, at + 7u * LANES);
                }
            }
        }
    }
    team_put(0u, &sums, squares, local);
    squares_put(squares, local);
    workgroupBarrier();
    team_finish(slice_first, base, local, early);
}
