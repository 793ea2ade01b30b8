//! needs product pieces scaling source chain order
//! const ROWS
// Slice of the product_lanes family: one piece of each of ROWS (1, 2 or 4) rows of W. slice_rows(base): the rows from base
// on. slice_load(rows, at): piece `at` of each row. slice_column(sum, w, by, v, at): adds the products with a row of x to
// their sums.
// All indices of arrays are constants, so that the arrays stay in registers, even in shaders with bounds checks.
struct SliceRows {                  // where the rows of W begin
    pieces: vec4<u32>,
    scales: vec4<u32>,
}
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
struct SliceVector {                // what a piece is multiplied with: the first four elements of a row of x in a, …
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
    sum: f32,                       // of all elements
}
var<private> slice_first: u32;      // first row of x
var<private> slice_last: u32;       // last piece of a row

fn slice_rows(base: u32) -> SliceRows {
    var out: SliceRows;
    for (var i = 0u; i < 4u; i++) {
        let held = order_row(min(base + i, params.rows - 1u), params.rows);
        out.pieces[i] = held * params.stride;
        out.scales[i] = held * params.groups;
    }
    return out;
}

fn slice_load(rows: SliceRows, at: u32) -> Slice {
    let i = min(at, slice_last);
    let group = i * PIECES4 / SCALING_GROUP4;
    var out: Slice;
    out.p = pieces_load(rows.pieces.x + i);
    out.scales[0] = scaling_load(rows.scales.x + group);
    if (ROWS > 1u) {
        out.q = pieces_load(rows.pieces.y + i);
        out.scales[1] = scaling_load(rows.scales.y + group);
    }
    if (ROWS > 2u) {
        out.r = pieces_load(rows.pieces.z + i);
        out.s = pieces_load(rows.pieces.w + i);
        out.scales[2] = scaling_load(rows.scales.z + group);
        out.scales[3] = scaling_load(rows.scales.w + group);
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

// All weights of a slice.
fn slice_weights(s: Slice) -> SliceGroups {
    var w: SliceGroups;
    w.a = slice_groups(s, 0u);
    if (PIECES4 > 1u) {
        w.b = slice_groups(s, 1u);
    }
    if (PIECES4 > 2u) {
        w.c = slice_groups(s, 2u);
        w.d = slice_groups(s, 3u);
    }
    return w;
}

// Index in x of element group u of piece `at`. Rows of x end at a multiple of four, rows of W at the end of a piece.
fn slice_k(at: u32, u: u32) -> u32 {
    return min(min(at, slice_last) * PIECES4 + u, params.k4 - 1u);
}

// What piece `at` is multiplied with in vector c of x.
fn slice_vector(c: u32, at: u32) -> SliceVector {
    let m = min(slice_first + c, params.m - 1u);
    var v: SliceVector;
    v.a = source_load(m, slice_k(at, 0u));
    if (PIECES4 > 1u) {
        v.b = source_load(m, slice_k(at, 1u));
    }
    if (PIECES4 > 2u) {
        v.c = source_load(m, slice_k(at, 2u));
        v.d = source_load(m, slice_k(at, 3u));
    }
    v.sum = slice_sum(v);
    return v;
}

fn slice_sum(v: SliceVector) -> f32 {
    var total = v.a;
    if (PIECES4 > 1u) {
        total += v.b;
    }
    if (PIECES4 > 2u) {
        total += v.c;
        total += v.d;
    }
    return (total.x + total.y) + (total.z + total.w);
}

// sum plus the products of piece `at` of each row with v.
fn slice_column(sum: vec4<f32>, w: SliceGroups, by: mat4x2<f32>, v: SliceVector, at: u32) -> vec4<f32> {
    var part = slice_chain(scaling_begin(sum), w.a, v.a);
    if (PIECES4 > 1u) {
        part = slice_chain(part, w.b, v.b);
    }
    if (PIECES4 > 2u) {
        part = slice_chain(part, w.c, v.c);
        part = slice_chain(part, w.d, v.d);
    }
    return select(sum, scaling_end(sum, part, v.sum, by), at <= slice_last);
}
