//! grid n/64 m/64
// out[m, n] = Σₖ x[m, k] · w[n, k]. A workgroup computes a tile of 64 × 64 elements, an invocation 4 × 4 of them.
const TILE = 64u;
struct Params {
    m: u32,
    n: u32,
    k: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;             // [m, k]
@group(0) @binding(2) var<storage, read> w: array<f32>;             // [n, k]
@group(0) @binding(3) var<storage, read_write> out: array<f32>;     // [m, n]
var<workgroup> tile_x: array<f32, TILE * TILE>;     // 16,384 bytes
var<workgroup> tile_w: array<f32, TILE * TILE>;     // and as many again

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>,
        @builtin(local_invocation_index) index: u32) {
    let row = group.y * TILE;
    let column = group.x * TILE;
    var sum = array<f32, 16>();
    for (var first = 0u; first < params.k; first += TILE) {
        for (var at = index; at < TILE * TILE; at += 256u) {
            let k = first + at % TILE;
            let inside = k < params.k;
            let x_row = min(row + at / TILE, params.m - 1u);
            let w_row = min(column + at / TILE, params.n - 1u);
            tile_x[at] = select(0.0, x[x_row * params.k + min(k, params.k - 1u)], inside);
            tile_w[at] = select(0.0, w[w_row * params.k + min(k, params.k - 1u)], inside);
        }
        workgroupBarrier();
        for (var i = 0u; i < TILE; i++) {
            for (var e = 0u; e < 16u; e++) {
                let down = local.y + e / 4u * 16u;
                let across = local.x + e % 4u * 16u;
                sum[e] += tile_x[down * TILE + i] * tile_w[across * TILE + i];
            }
        }
        workgroupBarrier();
    }
    for (var e = 0u; e < 16u; e++) {
        let m = row + local.y + e / 4u * 16u;
        let n = column + local.x + e % 4u * 16u;
        if (m < params.m && n < params.n) {
            out[m * params.n + n] = sum[e];
        }
    }
}
