//! needs product pieces scaling source chain
//! const VECTORS ROWS
// Slice of product_lanes: one piece of each of ROWS (1, 2 or 4) rows of W. slice_load(at): piece `at` of each row.
// slice_add(sums, s, at): adds the products of the slice with VECTORS (1, 2, 4 or 8) rows of x to their sums.
// All indices of arrays are constants, so that the arrays stay in registers, even in shaders with bounds checks.
struct Slice {                      // a piece and a scale for each row of W
    p: Piece,
    q: Piece,
    r: Piece,
    s: Piece,
    scales: mat4x2<f32>,
}
struct SliceGroups {                // weights: the first four of row r in a[r], the next four in b[r], …
    a: mat4x4<f32>,
    b: mat4x4<f32>,
    c: mat4x4<f32>,
    d: mat4x4<f32>,
}
var<private> slice_first: u32;            // first row of x
var<private> slice_last: u32;             // last piece of a row
var<private> slice_begins: vec4<u32>;     // first piece of each row of W
var<private> slice_scales: vec4<u32>;     // first scale of each row of W

fn slice_load(at: u32) -> Slice {
    let i = min(at, slice_last);
    let group = i * PIECES4 / SCALING_GROUP4;
    var out: Slice;
    out.p = pieces_load(slice_begins.x + i);
    out.scales[0] = scaling_load(slice_scales.x + group);
    if (ROWS > 1u) {
        out.q = pieces_load(slice_begins.y + i);
        out.scales[1] = scaling_load(slice_scales.y + group);
    }
    if (ROWS > 2u) {
        out.r = pieces_load(slice_begins.z + i);
        out.s = pieces_load(slice_begins.w + i);
        out.scales[2] = scaling_load(slice_scales.z + group);
        out.scales[3] = scaling_load(slice_scales.w + group);
    }
    return out;
}

// The u-th four weights of each row.
fn slice_groups(s: Slice, u: u32) -> mat4x4<f32> {
    var out: mat4x4<f32>;
    out[0] = pieces_part(s.p, u);
    if (ROWS > 1u) {
        out[1] = pieces_part(s.q, u);
    }
    if (ROWS > 2u) {
        out[2] = pieces_part(s.r, u);
        out[3] = pieces_part(s.s, u);
    }
    return out;
}

// part + w · v for each row.
fn slice_chain(part: vec4<f32>, w: mat4x4<f32>, v: vec4<f32>) -> vec4<f32> {
    var out = part;
    out.x = chain(part.x, w[0], v);
    if (ROWS > 1u) {
        out.y = chain(part.y, w[1], v);
    }
    if (ROWS > 2u) {
        out.z = chain(part.z, w[2], v);
        out.w = chain(part.w, w[3], v);
    }
    return out;
}

// sum plus the products of piece `at` of each row with vector c of x.
fn slice_column(sum: vec4<f32>, w: SliceGroups, by: mat4x2<f32>, c: u32, at: u32) -> vec4<f32> {
    let m = min(slice_first + c, params.m - 1u);
    let k = min(at, slice_last) * PIECES4;
    let last = params.k4 - 1u;
    var v = source_load(m, k);
    var part = slice_chain(scaling_begin(sum), w.a, v);
    var total = v;
    if (PIECES4 > 1u) {
        v = source_load(m, min(k + 1u, last));
        part = slice_chain(part, w.b, v);
        total += v;
    }
    if (PIECES4 > 2u) {
        v = source_load(m, min(k + 2u, last));
        part = slice_chain(part, w.c, v);
        total += v;
        v = source_load(m, min(k + 3u, last));
        part = slice_chain(part, w.d, v);
        total += v;
    }
    let x_sum = (total.x + total.y) + (total.z + total.w);
    return select(sum, scaling_end(sum, part, x_sum, by), at <= slice_last);
}

fn slice_add(sums: ptr<function, array<vec4<f32>, 8>>, s: Slice, at: u32) {
    var w: SliceGroups;
    w.a = slice_groups(s, 0u);
    if (PIECES4 > 1u) {
        w.b = slice_groups(s, 1u);
    }
    if (PIECES4 > 2u) {
        w.c = slice_groups(s, 2u);
        w.d = slice_groups(s, 3u);
    }
    sums[0] = slice_column(sums[0], w, s.scales, 0u, at);
    if (VECTORS > 1u) {
        sums[1] = slice_column(sums[1], w, s.scales, 1u, at);
    }
    if (VECTORS > 2u) {
        sums[2] = slice_column(sums[2], w, s.scales, 2u, at);
        sums[3] = slice_column(sums[3], w, s.scales, 3u, at);
    }
    if (VECTORS > 4u) {
        sums[4] = slice_column(sums[4], w, s.scales, 4u, at);
        sums[5] = slice_column(sums[5], w, s.scales, 5u, at);
        sums[6] = slice_column(sums[6], w, s.scales, 6u, at);
        sums[7] = slice_column(sums[7], w, s.scales, 7u, at);
    }
}
