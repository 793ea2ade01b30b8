//! needs product weights epilogue reduce
//! const COLS
// out[c, n] = Σₖ W[n, k] · x[c, k] for 1 to 8 columns c, 32 lanes along k to a row n: for GPUs, where neighbouring lanes
// read neighbouring memory. Lane l adds groups l, l + 32, … in order; then the lanes are reduced.
// Grid: ceil(rows / (WORKGROUP / 32)) workgroups.
const LANES = 32u;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let row = (id.y * grid.x + id.x) * (WORKGROUP / LANES) + local / LANES;
    let lane = local % LANES;
    let base = min(row, params.rows - 1u) * params.stride4;
    var acc: array<vec4<f32>, COLS>;
    for (var k = lane; k < params.k4; k += LANES) {
        let w = weights_load(base + k);
        for (var c = 0u; c < COLS; c++) {
            acc[c] = fma(w, x[(params.start + c) * params.x_stride4 + k], acc[c]);
        }
    }
    for (var c = 0u; c < COLS; c++) {
        let v = acc[c];
        let sum = reduce_sum(product_sum4(v), local, LANES);
        if (lane == 0u && row < params.rows) {
            let n = params.first + row;
            out[(params.start + c) * params.out_stride + n] = epilogue(sum, n);
        }
    }
}
