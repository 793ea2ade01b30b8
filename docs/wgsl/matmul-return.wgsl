//! grid n/16 m/16
// out[m, n] = Σₖ x[m, k] · w[n, k]. A workgroup computes a tile of 16 × 16 elements, an invocation one of them.
const TILE = 16u;
struct Params {
    m: u32,
    n: u32,
    k: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;             // [m, k]
@group(0) @binding(2) var<storage, read> w: array<f32>;             // [n, k]
@group(0) @binding(3) var<storage, read_write> out: array<f32>;     // [m, n]
var<workgroup> tile_x: array<f32, TILE * TILE>;
var<workgroup> tile_w: array<f32, TILE * TILE>;

@compute @workgroup_size(TILE, TILE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let row = group.y * TILE + local.y;     // of x and out
    let column = group.x * TILE + local.x;  // of out
    let w_row = group.x * TILE + local.y;   // the row of w that this invocation fetches
    if (row >= params.m || column >= params.n) {
        return;
    }
    let at = local.y * TILE + local.x;
    var sum = 0.0;
    for (var first = 0u; first < params.k; first += TILE) {
        let k = first + local.x;            // neighbours fetch neighbouring addresses
        tile_x[at] = 0.0;
        if (row < params.m && k < params.k) {
            tile_x[at] = x[row * params.k + k];
        }
        tile_w[at] = 0.0;
        if (w_row < params.n && k < params.k) {
            tile_w[at] = w[w_row * params.k + k];
        }
        workgroupBarrier();                 // the tiles are complete
        for (var i = 0u; i < TILE; i++) {
            sum += tile_x[local.y * TILE + i] * tile_w[local.x * TILE + i];
        }
        workgroupBarrier();                 // nobody still reads them
    }
    out[row * params.n + column] = sum;
}
