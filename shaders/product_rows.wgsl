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
