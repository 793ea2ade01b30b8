//! needs product weights order source bias epilogue
// out[m, n] = Σₖ x[m, k] · W[n, k] + bias[n], then the epilogue, by tiles of 64 × 64 through workgroup memory, 4 × 4
// elements to an invocation: for GPUs and many rows m. The sum over k runs in order for every element.
// Grid: ceil(rows / 64) · ceil(m / 64) workgroups, along n first.
const TILE = 64u;
const DEPTH4 = 4u;    // groups of four along k in a tile
var<workgroup> tile_x: array<vec4<f32>, TILE * DEPTH4>;                 // [k4, m]
var<workgroup> tile_w: array<vec4<f32>, TILE * DEPTH4>;                 // [k4, place of n]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let across = (params.rows + TILE - 1u) / TILE;
    let n0 = group % across * TILE;
    let m0 = group / across * TILE;
    if (m0 >= params.m) {
        return;
    }
    let load_row = local / DEPTH4;
    let load_k = local % DEPTH4;
    let load_place = load_row % 4u * 16u + load_row / 4u;   // so that an invocation's four n are neighbours
    let m_load = min(m0 + load_row, params.m - 1u);
    let w_row = order_row(min(n0 + load_row, params.rows - 1u), params.rows);
    let w_at = w_row * params.stride * WEIGHTS_WIDE;
    let tm = local / 16u;   // rows m0 + tm + 16 i of the invocation
    let tn = local % 16u;   // columns n0 + 4 tn + j
    var acc = array<vec4<f32>, 4>();
    for (var k = 0u; k < params.k4; k += DEPTH4) {
        let inside = k + load_k < params.k4;
        let at = min(k + load_k, params.k4 - 1u);
        tile_x[load_k * TILE + load_row] = select(vec4<f32>(), source_load(m_load, at), inside);
        tile_w[load_k * TILE + load_place] = select(vec4<f32>(), weights_load(w_at + at), inside);
        workgroupBarrier();
        for (var d = 0u; d < DEPTH4; d++) {
            let w0 = tile_w[d * TILE + tn];
            let w1 = tile_w[d * TILE + tn + 16u];
            let w2 = tile_w[d * TILE + tn + 32u];
            let w3 = tile_w[d * TILE + tn + 48u];
            for (var i = 0u; i < 4u; i++) {
                let v = tile_x[d * TILE + tm + 16u * i];
                acc[i] += vec4<f32>(dot(w0, v), dot(w1, v), dot(w2, v), dot(w3, v));
            }
        }
        workgroupBarrier();
    }
    let row = n0 + 4u * tn;
    if (row >= params.rows) {
        return;
    }
    let count = min(4u, params.rows - row);
    let n = params.first + row;
    var bias4: vec4<f32>;
    for (var j = 0u; j < 4u; j++) {
        bias4[j] = bias_load(n + min(j, count - 1u));
    }
    for (var i = 0u; i < 4u; i++) {
        let m = m0 + tm + 16u * i;
        if (m < params.m) {
            epilogue(m, n, acc[i] + bias4, count);
        }
    }
}
