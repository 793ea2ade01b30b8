//! needs product slice team squares norm gather bias epilogue
//! const VECTORS LANES ROWS PASSES HELD WORKGROUP
// As product_lanes, with the same order of additions, for a single row of x (VECTORS is 1): a team takes ROWS rows n in each
// of PASSES passes, and its lanes keep their pieces of x in registers, HELD (1, 2, 4, 8 or 16) of them, with their sums.
// The first pieces of W that a pass needs are loaded before the products of the pass before it.
// Grid: ceil(rows / TILE) workgroups.
struct FourSlices {                     // pieces at, at + LANES, … of each row of W; fewer than four if HELD is smaller
    a: Slice,
    b: Slice,
    c: Slice,
    d: Slice,
}
struct FourVectors {                    // what they are multiplied with
    a: SliceVector,
    b: SliceVector,
    c: SliceVector,
    d: SliceVector,
}

fn four_slices(rows: SliceRows, at: u32) -> FourSlices {
    var out: FourSlices;
    out.a = slice_load(rows, at);
    if (HELD > 1u) {
        out.b = slice_load(rows, at + LANES);
    }
    if (HELD > 2u) {
        out.c = slice_load(rows, at + 2u * LANES);
        out.d = slice_load(rows, at + 3u * LANES);
    }
    return out;
}

fn four_vectors(at: u32) -> FourVectors {
    var out: FourVectors;
    out.a = slice_vector(0u, at);
    if (HELD > 1u) {
        out.b = slice_vector(0u, at + LANES);
    }
    if (HELD > 2u) {
        out.c = slice_vector(0u, at + 2u * LANES);
        out.d = slice_vector(0u, at + 3u * LANES);
    }
    return out;
}

// sum plus the products of four pieces.
fn four_add(sum: vec4<f32>, s: FourSlices, v: FourVectors, at: u32) -> vec4<f32> {
    var out = slice_column(sum, slice_weights(s.a), s.a.scales, v.a, at);
    if (HELD > 1u) {
        out = slice_column(out, slice_weights(s.b), s.b.scales, v.b, at + LANES);
    }
    if (HELD > 2u) {
        out = slice_column(out, slice_weights(s.c), s.c.scales, v.c, at + 2u * LANES);
        out = slice_column(out, slice_weights(s.d), s.d.scales, v.d, at + 3u * LANES);
    }
    return out;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let base = (id.y * grid.x + id.x) * TILE;
    slice_first = 0u;
    slice_last = (params.k4 + PIECES4 - 1u) / PIECES4 - 1u;
    let lane = local % LANES;
    let mine = base + local / LANES * ROWS;     // the team's first row
    var rows = slice_rows(mine);
    var early: Early;
    let own = base + local * 4u;                // the invocation finishes rows own to own + 3
    if (local < TILE / 4u && own < params.rows) {
        early = epilogue_early(0u, params.first + own, min(4u, params.rows - own));
    }
    let squares = squares_load(0u, local);
    var next = four_slices(rows, lane);
    let v0 = four_vectors(lane);
    var v1: FourVectors;
    var v2: FourVectors;
    var v3: FourVectors;
    if (HELD > 4u) {
        v1 = four_vectors(lane + 4u * LANES);
    }
    if (HELD > 8u) {
        v2 = four_vectors(lane + 8u * LANES);
        v3 = four_vectors(lane + 12u * LANES);
    }
    for (var turn = 0u; turn < PASSES && base + turn * STRIP < params.rows; turn++) {
        let first = next;
        var second: FourSlices;
        if (HELD > 4u) {
            second = four_slices(rows, lane + 4u * LANES);
        }
        let after = slice_rows(mine + min(turn + 1u, PASSES - 1u) * STRIP);     // the last pass loads its own rows again
        next = four_slices(after, lane);
        var sums = array<vec4<f32>, 8>();
        sums[0] = four_add(sums[0], first, v0, lane);
        if (HELD > 4u) {
            sums[0] = four_add(sums[0], second, v1, lane + 4u * LANES);
        }
        if (HELD > 8u) {
            sums[0] = four_add(sums[0], four_slices(rows, lane + 8u * LANES), v2, lane + 8u * LANES);
            sums[0] = four_add(sums[0], four_slices(rows, lane + 12u * LANES), v3, lane + 12u * LANES);
        }
        team_put(turn, &sums, squares, local);
        rows = after;
    }
    squares_put(squares, local);
    workgroupBarrier();
    team_finish(0u, base, local, early);
}
