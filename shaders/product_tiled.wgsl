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
