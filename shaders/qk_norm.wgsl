//! needs reduce kv_store paged
//! const NORM
// Finishes q, k and v where the projection's epilogue cannot, because a norm needs whole heads: RMSNorm of q and k
// (arXiv:1910.07467), rotation of their pairs by the row's position (arXiv:2104.09864), scaling of q by
// 1 + beta · ln(1 + floor(position / original)) (Llama 4), and the cache write of k and v.
// NORM 0: no norm; 1: of every head, before the rotation; 2: of every head, after it; 3: of all heads of q together, and of
// all heads of k together, before the rotation.
// Grid: rows · (heads + 2 kv_heads) workgroups; a workgroup takes one head, an invocation four elements of it.
struct Params {
    rows: u32,
    heads: u32,
    kv_heads: u32,
    stride4: u32,     // vec4s from one row of x to the next
    table: u32,       // page table entries of a sequence
    eps: f32,
    beta: f32,
    original: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step_rows: array<vec4<u32>>;   // [rows] token, position, slot, place
@group(0) @binding(2) var<storage, read> pages: array<u32>;             // [slots, table] page numbers
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;           // [rows, heads + 2 kv_heads, D4] q, k, v
@group(0) @binding(4) var<storage, read> weight: array<vec4<f32>>;      // NORM 1 and 2: [2, D4] of q, k; 3: [heads + kv_heads, D4]
@group(0) @binding(5) var<storage, read> cos_sin: array<vec4<f32>>;     // [positions, D4] cos, sin, cos, sin
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>;   // [rows, heads · D4]

fn squares(v: vec4<f32>, local: u32) -> f32 {
    return reduce_sum(dot(v, v), local, WORKGROUP);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let index = id.y * grid.x + id.x;
    let heads = params.heads + 2u * params.kv_heads;
    let head = index % heads;
    let row = min(index / heads, params.rows - 1u);
    let base = row * params.stride4;
    let query = head < params.heads;
    let value = head >= params.heads + params.kv_heads;
    let inside = local < D4 && index / heads < params.rows;
    let c = min(local, D4 - 1u);
    let at = select(head, select(1u, 0u, query), NORM < 3u) * D4 + c;
    var v = select(vec4<f32>(), x[base + head * D4 + c], inside);
    var factor = vec4<f32>(1.0);
    if (NORM > 0u && !value) {
        factor = weight[at];
    }
    if (NORM == 1u) {
        let total = squares(v, local);
        factor /= sqrt(total / f32(4u * D4) + params.eps);
    } else if (NORM == 3u) {
        let first = select(params.heads, 0u, query) * D4;
        let count = select(params.kv_heads, params.heads, query) * D4;
        var sum = vec4<f32>();
        for (var i = local; i < count; i += WORKGROUP) {
            let u = x[base + first + i];
            sum = fma(u, u, sum);
        }
        let total = reduce_sum((sum.x + sum.y) + (sum.z + sum.w), local, WORKGROUP);
        factor /= sqrt(total / f32(4u * count) + params.eps);
    }
    let position = step_rows[row].y;
    let t = cos_sin[position * D4 + c];
    if (!value) {
        if (NORM != 2u) {
            v *= factor;
        }
        v = vec4<f32>(v.x * t.x - v.y * t.y, v.y * t.x + v.x * t.y, v.z * t.z - v.w * t.w, v.w * t.z + v.z * t.w);
    }
    if (NORM == 2u) {
        let total = squares(v, local);
        v *= select(factor / sqrt(total / f32(4u * D4) + params.eps), vec4<f32>(1.0), value);
    }
    if (!inside) {
        return;
    }
    if (query) {
        let steps = floor(f32(position) / params.original);
        out[(row * params.heads + head) * D4 + c] = v * (1.0 + params.beta * log(1.0 + steps));
        return;
    }
    let kv = head - params.heads;
    let page = pages[step_rows[row].z * params.table + position / PAGE];
    let to = paged_index(page, kv / params.kv_heads, kv % params.kv_heads, params.kv_heads, position);
    kv_store(to + c, v);
}
