//! grid rows/1
// out[r] = Σⱼ softmaxⱼ(scale · q[r] · k[j]) v[j] over positions j ≤ r + positions - rows: the last query is at the last
// position. A workgroup computes a query, an invocation one element of it.
const HEAD = 64u;
const LOWEST = -3.4028234e38;
struct Params {
    rows: u32,
    positions: u32,
    scale: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;             // [rows, HEAD]
@group(0) @binding(2) var<storage, read> k: array<f32>;             // [positions, HEAD]
@group(0) @binding(3) var<storage, read> v: array<f32>;             // [positions, HEAD]
@group(0) @binding(4) var<storage, read_write> out: array<f32>;     // [rows, HEAD]
var<workgroup> query: array<f32, HEAD>;
var<workgroup> scores: array<f32, 2048>;

@compute @workgroup_size(HEAD)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let end = group.x + params.positions - params.rows + 1u;    // positions that this query sees
    query[local] = q[group.x * HEAD + local] * params.scale;
    workgroupBarrier();
    for (var j = local; j < end; j += HEAD) {
        var score = 0.0;
        for (var c = 0u; c < HEAD; c++) {
            score += query[c] * k[j * HEAD + c];
        }
        scores[j] = score;
    }
    workgroupBarrier();
    var top = LOWEST;
    for (var j = 0u; j < end; j++) {
        top = max(top, scores[j]);
    }
    var sum = 0.0;
    var acc = 0.0;
    for (var j = 0u; j < end; j++) {
        let weight = exp(scores[j] - top);
        sum += weight;
        acc += weight * v[j * HEAD + local];
    }
    out[group.x * HEAD + local] = acc / sum;
}
