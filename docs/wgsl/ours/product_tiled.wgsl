const DOWN: u32 = 4u;
const ACROSS: u32 = 1u;
// Parameters of every product of vectors with a weight matrix W [n, k]: out[m, n] = Σₖ x[m, k] · W[n, k].
struct Params {
    m: u32,           // rows of x
    rows: u32,        // rows of this part of W
    first: u32,       // row of the whole W where the part begins
    k4: u32,          // vec4s along k
    stride: u32,      // loads (product_lanes: pieces) from one row of W to the next
    groups: u32,      // quantization groups in a row of W
    x_stride4: u32,   // vec4s from one row of x to the next
    out_stride: u32,  // elements from one row of out to the next
    sums: u32,        // norm/rms: vec4 of a row of x where the sums of squares begin
    eps: f32,
    columns: u32,     // norm/rms: elements whose squares were summed; epilogue/add_norm: elements in a row of out
    heads: u32,       // epilogue/qkv: query heads; source/merge: heads
    kv_heads: u32,    // epilogue/qkv: K/V heads
    splits: u32,      // source/merge: runs that partials holds for each row and head
    window: u32,      // source/merge with mask/window: positions that a query sees
    factor: f32,      // epilogues that store or add: scales the product
    cap: f32,         // epilogue/cap
    bias_stride: u32, // bias/add: elements from one row of the bias to the next; 0 for a vector
}
@group(0) @binding(0) var<uniform> params: Params;
// Joins the product of a stretch of a row to the row's sum, for weights that are not quantized.
// fold_join(sum, part, x_sum, group): sum + part.
const FOLD4 = 8u;   // vec4s in a stretch

fn fold_join(sum: f32, part: f32, x_sum: f32, group: u32) -> f32 {
    return sum + part;
}
// Loads of 16 bytes as four u32. words_of(load): the four u32; words_floats(load): the same bits as floats.
alias Words = vec4<u32>;

fn words_of(load: Words) -> vec4<u32> {
    return load;
}

fn words_floats(load: Words) -> vec4<f32> {
    return bitcast<vec4<f32>>(load);
}
//! needs fold words
// Weights as float32. weights_raw(at): a load of 16 bytes.
// weights_part(raw, u): the u-th four weights of a load. weights_load(i): elements 4i to 4i + 3.
alias WeightsRaw = vec4<f32>;
const WEIGHTS_WIDE = 1u;     // groups of four weights in a load
@group(1) @binding(0) var<storage, read> weights_data: array<Words>;

fn weights_raw(at: u32) -> WeightsRaw {
    return words_floats(weights_data[at]);
}

fn weights_part(raw: WeightsRaw, u: u32) -> vec4<f32> {
    return raw;
}

fn weights_load(i: u32) -> vec4<f32> {
    return words_floats(weights_data[i]);
}
// Index in memory of a row of weights. order_row(row, rows): the row itself.
fn order_row(row: u32, rows: u32) -> u32 {
    return row;
}
//! needs words
// Source of a product: a buffer. source_load(m, k): elements 4k to 4k + 3 of row m.
@group(0) @binding(1) var<storage, read> x: array<Words>;               // [m, k]

fn source_load(m: u32, k: u32) -> vec4<f32> {
    return words_floats(x[m * params.x_stride4 + k]);
}
// Bias of a product: none. bias_load(m, n): 0.
fn bias_load(m: u32, n: u32) -> f32 {
    return 0.0;
}
// Epilogue: stores the product × factor. epilogue_early(m, n, count): loads nothing.
// epilogue(m, n, value, count, early): takes columns n to n + count - 1 (at most 4) of row m; early is from epilogue_early.
@group(2) @binding(1) var<storage, read_write> out: array<f32>;         // [m, n]
struct Early {
    nothing: u32,
}

fn epilogue_early(m: u32, n: u32, count: u32) -> Early {
    return Early();
}

fn epilogue(m: u32, n: u32, value: vec4<f32>, count: u32, early: Early) {
    let at = m * params.out_stride + n;
    let v = value * params.factor;
    out[at] = v.x;
    if (count > 1u) { out[at + 1u] = v.y; }
    if (count > 2u) { out[at + 2u] = v.z; }
    if (count > 3u) { out[at + 3u] = v.w; }
}
// chain(sum, a, b): sum + a · b by multiply-adds in order. The built-in dot would take one more addition.
fn chain(sum: f32, a: vec4<f32>, b: vec4<f32>) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}
//! needs chain
//! const ACROSS
// Registers of an invocation of product_tiled. tile_add(sum, v, w): sum plus the products of v (four k of x, for one m) and
// w (the same four k of W).
struct TileSum {        // sums of one m: columns 4 tn to 4 tn + 3 of the tile, and 64 further on
    low: vec4<f32>,
    high: vec4<f32>,
}
struct TileBlock {      // four k of W, for the columns of a TileSum
    low: mat4x4<f32>,
    high: mat4x4<f32>,
}

fn tile_add(sum: TileSum, v: vec4<f32>, w: TileBlock) -> TileSum {
    var out: TileSum;
    out.low = tile_chain(sum.low, v, w.low);
    if (ACROSS > 1u) {
        out.high = tile_chain(sum.high, v, w.high);
    }
    return out;
}

fn tile_chain(sum: vec4<f32>, v: vec4<f32>, w: mat4x4<f32>) -> vec4<f32> {
    return vec4<f32>(chain(sum.x, v, w[0]), chain(sum.y, v, w[1]), chain(sum.z, v, w[2]), chain(sum.w, v, w[3]));
}
//! needs product weights order source bias epilogue tile
//! const DOWN ACROSS
// out[m, n] = Σₖ x[m, k] · W[n, k] + bias[m, n], then the epilogue; for GPUs and many rows m. A workgroup computes a tile of
// 16 DOWN × 64 ACROSS elements through workgroup memory. An invocation takes DOWN (4 or 8) rows m and ACROSS (1 or 2)
// groups of four n. It fetches the next tiles of x and W while it multiplies the current ones. The sum over k runs in order
// for every element, whatever the tile.
// Grid: ceil(rows / (64 ACROSS)) · ceil(m / (16 DOWN)) workgroups; consecutive ones run along n.
const TILE_M = 16u * DOWN;
const TILE_N = 64u * ACROSS;
const DEPTH4 = 4u;      // vec4s along k in a tile
var<workgroup> tile_x: array<vec4<f32>, TILE_M * DEPTH4>;       // [k4, m]
var<workgroup> tile_w: array<vec4<f32>, TILE_N * DEPTH4>;       // [k4, n in the order of to_w]

fn x_at(m: u32, k: u32) -> vec4<f32> {
    return select(vec4<f32>(), source_load(min(m, params.m - 1u), min(k, params.k4 - 1u)), k < params.k4);
}

fn w_at(row: u32, k: u32) -> vec4<f32> {
    let w = weights_load(row * params.stride * WEIGHTS_WIDE + min(k, params.k4 - 1u));
    return select(vec4<f32>(), w, k < params.k4);
}

fn block_at(at: u32) -> TileBlock {
    var out: TileBlock;
    out.low = mat4x4<f32>(tile_w[at], tile_w[at + 16u], tile_w[at + 32u], tile_w[at + 48u]);
    if (ACROSS > 1u) {
        out.high = mat4x4<f32>(tile_w[at + 64u], tile_w[at + 80u], tile_w[at + 96u], tile_w[at + 112u]);
    }
    return out;
}

fn put(sum: TileSum, m: u32, column: u32) {
    put_four(sum.low, m, column);
    if (ACROSS > 1u) {
        put_four(sum.high, m, column + 64u);
    }
}

fn put_four(sum: vec4<f32>, m: u32, column: u32) {
    if (m >= params.m || column >= params.rows) {
        return;
    }
    let count = min(4u, params.rows - column);
    let n = params.first + column;
    var value = sum;
    for (var j = 0u; j < 4u; j++) {
        value[j] += bias_load(m, n + min(j, count - 1u));
    }
    epilogue(m, n, value, count, epilogue_early(m, n, count));
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let across = (params.rows + TILE_N - 1u) / TILE_N;
    let n0 = group % across * TILE_N;
    let m0 = group / across * TILE_M;
    if (m0 >= params.m) {
        return;
    }
    let row = local / DEPTH4;           // the invocation fetches this row, and row + 64 of larger tiles
    let k0 = local % DEPTH4;
    let w_low = order_row(min(n0 + row, params.rows - 1u), params.rows);
    let w_high = order_row(min(n0 + row + 64u, params.rows - 1u), params.rows);
    let to_x = k0 * TILE_M + row;
    let to_w = k0 * TILE_N + row % 4u * 16u + row / 4u;     // so that the four n of an invocation are consecutive
    let tm = local / 16u;               // the invocation takes rows m0 + tm + 16 i
    let tn = local % 16u;
    var a0: TileSum;
    var a1: TileSum;
    var a2: TileSum;
    var a3: TileSum;
    var a4: TileSum;
    var a5: TileSum;
    var a6: TileSum;
    var a7: TileSum;
    var x_low = x_at(m0 + row, k0);
    var x_high: vec4<f32>;
    var next_low = w_at(w_low, k0);
    var next_high: vec4<f32>;
    if (DOWN > 4u) {
        x_high = x_at(m0 + row + 64u, k0);
    }
    if (ACROSS > 1u) {
        next_high = w_at(w_high, k0);
    }
    let ahead = k0 + DEPTH4;
    for (var k = 0u; k < params.k4; k += DEPTH4) {     // bounds that all invocations share: the loop has barriers
        tile_x[to_x] = x_low;
        tile_w[to_w] = next_low;
        if (DOWN > 4u) {
            tile_x[to_x + 64u] = x_high;
        }
        if (ACROSS > 1u) {
            tile_w[to_w + 64u] = next_high;
        }
        workgroupBarrier();
        x_low = x_at(m0 + row, k + ahead);
        next_low = w_at(w_low, k + ahead);
        if (DOWN > 4u) {
            x_high = x_at(m0 + row + 64u, k + ahead);
        }
        if (ACROSS > 1u) {
            next_high = w_at(w_high, k + ahead);
        }
        for (var d = 0u; d < DEPTH4; d++) {
            let w = block_at(d * TILE_N + tn);
            let at = d * TILE_M + tm;
            a0 = tile_add(a0, tile_x[at], w);
            a1 = tile_add(a1, tile_x[at + 16u], w);
            a2 = tile_add(a2, tile_x[at + 32u], w);
            a3 = tile_add(a3, tile_x[at + 48u], w);
            if (DOWN > 4u) {
                a4 = tile_add(a4, tile_x[at + 64u], w);
                a5 = tile_add(a5, tile_x[at + 80u], w);
                a6 = tile_add(a6, tile_x[at + 96u], w);
                a7 = tile_add(a7, tile_x[at + 112u], w);
            }
        }
        workgroupBarrier();
    }
    let m = m0 + tm;
    let column = n0 + 4u * tn;
    put(a0, m, column);
    put(a1, m + 16u, column);
    put(a2, m + 32u, column);
    put(a3, m + 48u, column);
    if (DOWN > 4u) {
        put(a4, m + 64u, column);
        put(a5, m + 80u, column);
        put(a6, m + 96u, column);
        put(a7, m + 112u, column);
    }
}
