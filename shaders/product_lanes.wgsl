//! needs product weights order source norm reduce bias epilogue
//! const COLS
// out[m, n] = scale(m) · Σₖ x[m, k] · W[n, k] + bias[n], then the epilogue, for few rows m: 32 lanes along k to four rows
// n, for GPUs, where neighbouring lanes read neighbouring memory. Lane l takes loads l, l + 32, … in order; then the
// lanes are reduced. The order of additions does not depend on m.
// Grid: ceil(rows / (WORKGROUP / 8)) · ceil(m / COLS) workgroups; those that read the same weights follow one another.
const LANES = 32u;
const ROWS = 4u;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let deep = (params.m + COLS - 1u) / COLS;
    let row = ((group / deep) * (WORKGROUP / LANES) + local / LANES) * ROWS;
    let first = group % deep * COLS;
    let lane = local % LANES;
    let loads = (params.k4 + WEIGHTS_WIDE - 1u) / WEIGHTS_WIDE;
    var held: array<u32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        held[r] = order_row(min(row + r, params.rows - 1u), params.rows);
    }
    var sum = array<f32, ROWS * COLS>();
    for (var load = lane; load < loads; load += LANES) {
        var part = array<f32, ROWS * COLS>();
        var x_sum = array<f32, COLS>();
        var raw: array<WeightsRaw, ROWS>;
        for (var r = 0u; r < ROWS; r++) {
            raw[r] = weights_raw(held[r] * params.stride + load);
        }
        for (var u = 0u; u < WEIGHTS_WIDE; u++) {
            let k = load * WEIGHTS_WIDE + u;
            var w: array<vec4<f32>, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                w[r] = weights_part(raw[r], u);
            }
            for (var c = 0u; c < COLS; c++) {
                let x_k = source_load(min(first + c, params.m - 1u), min(k, params.k4 - 1u));
                let v = select(vec4<f32>(), x_k, k < params.k4);
                x_sum[c] += (v.x + v.y) + (v.z + v.w);
                for (var r = 0u; r < ROWS; r++) {
                    part[r * COLS + c] += dot(w[r], v);
                }
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            let scales = held[r] * params.groups + load * WEIGHTS_WIDE / FOLD4;
            for (var c = 0u; c < COLS; c++) {
                sum[r * COLS + c] = fold_join(sum[r * COLS + c], part[r * COLS + c], x_sum[c], scales);
            }
        }
    }
    let count = min(ROWS, params.rows - min(row, params.rows));
    let n = params.first + row;
    for (var c = 0u; c < COLS; c++) {
        let m = min(first + c, params.m - 1u);
        let scale = norm_scale(reduce_sum(norm_partial(m, lane, LANES), local, LANES));
        var value: vec4<f32>;
        for (var r = 0u; r < ROWS; r++) {
            let total = reduce_sum(sum[r * COLS + c], local, LANES);
            value[r] = fma(total, scale, bias_load(n + min(r, max(count, 1u) - 1u)));
        }
        if (lane == 0u && count > 0u && first + c < params.m) {
            epilogue(m, n, value, count);
        }
    }
}
