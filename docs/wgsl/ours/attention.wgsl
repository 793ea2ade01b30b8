const D4: u32 = 16u;
const QUERIES: u32 = 16u;
//! const D4 QUERIES
// Attention over plain tensors: out[r, h] = Σⱼ softmaxⱼ(scale · q[r, h] · k[j, h / group]) v[j, h / group] over positions
// j ≤ r + ahead. This is flash attention (Dao et al. 2022, arXiv:2205.14135): positions come in blocks of 32. The softmax
// keeps a running maximum, a running sum and an accumulator; it rescales sum and accumulator when the maximum grows.
// Grid: heads · ceil(rows / QUERIES) workgroups; a workgroup takes QUERIES rows of one head. An invocation computes scores
// of each block, and up to ITEMS vec4s of out.
struct Params {
    rows: u32,
    positions: u32,
    heads: u32,
    group: u32,      // heads of q that share a head of k and v
    ahead: u32,      // row r sees the positions up to r + ahead
    scale: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;           // [rows, heads · 4 · D4]
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;           // [positions, heads / group · 4 · D4]
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;           // as k
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;   // as q
const WORKGROUP = 64u;
const BLOCK = 32u;
const ITEMS = (QUERIES * D4 + WORKGROUP - 1u) / WORKGROUP;   // accumulators of an invocation: items local + 64 · n
const LOWEST = -3.4028234e38;
var<workgroup> queries: array<vec4<f32>, QUERIES * D4>;
var<workgroup> weight: array<f32, QUERIES * BLOCK>;          // scores, then e^(score - top)
var<workgroup> top: array<f32, QUERIES>;
var<workgroup> sum: array<f32, QUERIES>;
var<workgroup> keep: array<f32, QUERIES>;                    // factor that rescales the accumulator

// Number of positions that a row sees.
fn seen(row: u32) -> u32 {
    return min(row + params.ahead + 1u, params.positions);
}

fn score(i: u32, key: u32) -> f32 {
    var parts = vec4<f32>();
    for (var c = 0u; c < D4; c++) {
        parts = fma(queries[i * D4 + c], k[key + c], parts);
    }
    return (parts.x + parts.y) + (parts.z + parts.w);
}

// Turns the scores of query i into weights. It sees the first `count` positions of the block.
fn softmax(i: u32, count: u32) {
    var most = top[i];
    for (var j = 0u; j < count; j++) {
        most = max(most, weight[i * BLOCK + j]);
    }
    let factor = exp(top[i] - most);
    var total = sum[i] * factor;
    for (var j = 0u; j < BLOCK; j++) {
        let w = select(0.0, exp(weight[i * BLOCK + j] - most), j < count);
        weight[i * BLOCK + j] = w;
        total += w;
    }
    keep[i] = factor;
    top[i] = most;
    sum[i] = total;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let head = group % params.heads;
    let first = group / params.heads * QUERIES;   // row of the first query
    if (first >= params.rows) {
        return;
    }
    let here = min(QUERIES, params.rows - first);
    let q_base = (first * params.heads + head) * D4;
    let q_row = params.heads * D4;                // vec4s from one row of q to the next
    let kv_base = head / params.group * D4;
    let kv_row = params.heads / params.group * D4;
    for (var item = local; item < QUERIES * D4; item += WORKGROUP) {
        let i = min(item / D4, here - 1u);
        queries[item] = q[q_base + i * q_row + item % D4] * params.scale;
    }
    if (local < QUERIES) {
        top[local] = LOWEST;
        sum[local] = 0.0;
    }
    var acc = array<vec4<f32>, ITEMS>();
    workgroupBarrier();
    let end = seen(first + here - 1u);
    for (var block = 0u; block < end; block += BLOCK) {
        for (var item = local; item < here * BLOCK; item += WORKGROUP) {
            let position = min(block + item % BLOCK, end - 1u);
            weight[item] = score(item / BLOCK, kv_base + position * kv_row);
        }
        workgroupBarrier();
        if (local < here) {
            let all = seen(first + local);
            softmax(local, min(all - min(all, block), BLOCK));
        }
        workgroupBarrier();
        for (var n = 0u; n < ITEMS; n++) {
            let item = local + n * WORKGROUP;
            if (item < here * D4) {
                let i = item / D4;
                var a = acc[n] * keep[i];
                for (var j = 0u; j < min(BLOCK, end - block); j++) {
                    a = fma(vec4<f32>(weight[i * BLOCK + j]), v[kv_base + (block + j) * kv_row + item % D4], a);
                }
                acc[n] = a;
            }
        }
        workgroupBarrier();
    }
    for (var n = 0u; n < ITEMS; n++) {
        let item = local + n * WORKGROUP;
        if (item < here * D4) {
            out[q_base + item / D4 * q_row + item % D4] = acc[n] / sum[item / D4];
        }
    }
}
