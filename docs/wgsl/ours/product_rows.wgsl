const VECTORS: u32 = 8u;
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
// Norm of a product: none. norm_partial: 0. norm_scale: 1.
const NORM_SUMS = 0u;   // sums that norm_scale needs

fn norm_partial(m: u32, lane: u32, lanes: u32) -> f32 {
    return 0.0;
}

fn norm_scale(total: f32) -> f32 {
    return 1.0;
}
// Loads of a chunk of x, up to eight vec4s, by each invocation for itself: share_take(m, k, lane) loads nothing;
// share_get(taken, m, k, i) returns vec4 k + i of row m; share_sum(value) returns the value.
const SHARE_LANES = 1u;

fn share_take(m: u32, k: u32, lane: u32) -> vec4<f32> {
    return vec4<f32>();
}

fn share_get(taken: vec4<f32>, m: u32, k: u32, i: u32) -> vec4<f32> {
    let at = k + i;
    return select(vec4<f32>(), source_load(m, min(at, params.k4 - 1u)), at < params.k4);
}

fn share_sum(value: f32) -> f32 {
    return value;
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
//! needs product weights order source norm share bias epilogue
//! const VECTORS
// out[m, n] = scale(m) · Σₖ x[m, k] · W[n, k] + bias[m, n], then the epilogue; for software adapters, where an invocation is a
// SIMD lane of a core. An invocation takes four rows n of W and up to VECTORS rows m of x, in registers, without workgroup
// memory. It adds in the order of k, one stretch (lib/fold) after another, and this order does not depend on m.
// Grid: ceil(rows / 64) · ceil(m / VECTORS) workgroups; workgroups that read the same weights are consecutive.
const ROWS = 4u;
const WORKGROUP_ROWS = 16u * ROWS;
const CHUNK4 = min(8u, FOLD4);   // vec4s of x in a chunk, which neighbours may share
alias Sums = array<f32, ROWS * VECTORS>;

struct Chunk {
    first: u32,                          // first row of x
    k: u32,                              // vec4 along k where the chunk begins
    at: array<u32, ROWS>,                // load where each row of W begins
    raw: array<WeightsRaw, ROWS>,        // current load of each row
    taken: array<vec4<f32>, VECTORS>,    // results of share_take
    x_sum: array<f32, VECTORS>,
    part: Sums,
}

// Multiplies the i-th vec4 of a chunk. i is a constant of the caller, because drivers would not unroll so long a loop.
fn multiply(chunk: ptr<function, Chunk>, i: u32) {
    if (i >= CHUNK4) {
        return;
    }
    if (i % WEIGHTS_WIDE == 0u) {
        let loads = (params.k4 + WEIGHTS_WIDE - 1u) / WEIGHTS_WIDE;   // loads of a row of W, without padding
        let load = min((chunk.k + i) / WEIGHTS_WIDE, loads - 1u);
        for (var r = 0u; r < ROWS; r++) {
            chunk.raw[r] = weights_raw(chunk.at[r] + load);
        }
    }
    var w: array<vec4<f32>, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        w[r] = weights_part(chunk.raw[r], i % WEIGHTS_WIDE);
    }
    for (var c = 0u; c < VECTORS; c++) {
        let v = share_get(chunk.taken[c], min(chunk.first + c, params.m - 1u), chunk.k, i);
        chunk.x_sum[c] += (v.x + v.y) + (v.z + v.w);
        for (var r = 0u; r < ROWS; r++) {
            chunk.part[r * VECTORS + c] += dot(w[r], v);
        }
    }
}

@compute @workgroup_size(16)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let deep = (params.m + VECTORS - 1u) / VECTORS;
    let row = (group / deep) * WORKGROUP_ROWS + local * ROWS;
    let lane = local % 8u;
    var chunk: Chunk;
    chunk.first = group % deep * VECTORS;
    var scales: array<u32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        let held = order_row(min(row + r, params.rows - 1u), params.rows);
        chunk.at[r] = held * params.stride;
        scales[r] = held * params.groups;
    }
    var sum = Sums();
    let stretches = (params.k4 + FOLD4 - 1u) / FOLD4;
    for (var s = 0u; s < stretches; s++) {
        chunk.part = Sums();
        chunk.x_sum = array<f32, VECTORS>();
        for (var begin = 0u; begin < FOLD4; begin += CHUNK4) {
            chunk.k = s * FOLD4 + begin;
            for (var c = 0u; c < VECTORS; c++) {
                chunk.taken[c] = share_take(min(chunk.first + c, params.m - 1u), chunk.k, lane);
            }
            multiply(&chunk, 0u);
            multiply(&chunk, 1u);
            multiply(&chunk, 2u);
            multiply(&chunk, 3u);
            multiply(&chunk, 4u);
            multiply(&chunk, 5u);
            multiply(&chunk, 6u);
            multiply(&chunk, 7u);
        }
        for (var r = 0u; r < ROWS; r++) {
            for (var c = 0u; c < VECTORS; c++) {
                let i = r * VECTORS + c;
                sum[i] = fold_join(sum[i], chunk.part[i], chunk.x_sum[c], scales[r] + s);
            }
        }
    }
    var scale: array<f32, VECTORS>;
    for (var c = 0u; c < VECTORS; c++) {   // separate, because a loop that holds a loop is not unrolled
        let m = min(chunk.first + c, params.m - 1u);
        scale[c] = norm_scale(share_sum(norm_partial(m, lane % SHARE_LANES, SHARE_LANES)));
    }
    let count = min(ROWS, params.rows - min(row, params.rows));
    let n = params.first + row;
    for (var c = 0u; c < VECTORS; c++) {
        let m = min(chunk.first + c, params.m - 1u);
        if (count > 0u && chunk.first + c < params.m) {
            var value: vec4<f32>;
            for (var r = 0u; r < ROWS; r++) {
                value[r] = fma(sum[r * VECTORS + c], scale[c], bias_load(m, n + min(r, count - 1u)));
            }
            epilogue(m, n, value, count, epilogue_early(m, n, count));
        }
    }
}
