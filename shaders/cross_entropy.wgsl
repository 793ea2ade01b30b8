//! needs reduce
// out[r] = log Σ e^(x[r, :] - max) - (x[r, target(r)] - max): the negative log-probability of each row's target. A target that is
// no column (ignored) gives 0.
// Grid: one workgroup per row; an invocation takes every WORKGROUP-th column.
struct Params {
    rows: u32,
    columns: u32,
    stride: u32,    // elements from one row of x to the next
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;             // [rows, columns]
@group(0) @binding(2) var<storage, read> targets: array<u32>;       // [rows]
@group(0) @binding(3) var<storage, read_write> out: array<f32>;     // [rows]
var<workgroup> tops: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let row = id.y * grid.x + id.x;
    let count = select(0u, params.columns, row < params.rows);
    let base = row * params.stride;
    var top = -3.4028234e38;
    for (var c = local; c < count; c += WORKGROUP) {
        top = max(top, x[base + c]);
    }
    tops[local] = top;
    workgroupBarrier();
    for (var i = 0u; i < WORKGROUP; i++) {
        top = max(top, tops[i]);
    }
    var sum = 0.0;
    for (var c = local; c < count; c += WORKGROUP) {
        sum += exp(x[base + c] - top);
    }
    let total = reduce_sum(sum, local, WORKGROUP);
    if (local == 0u && row < params.rows) {
        let target_column = targets[row];
        if (target_column < params.columns) {
            out[row] = log(total) - (x[base + target_column] - top);
        } else {
            out[row] = 0.0;
        }
    }
}
