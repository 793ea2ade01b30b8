const WORKGROUP: u32 = 64u;
//! const WORKGROUP
// reduce_sum(value, local, lanes): the sum over each group of `lanes` neighbouring invocations (a power of two), by a binary
// tree in workgroup memory.
// Every invocation of the workgroup calls it in uniform control flow, and gets the sum of its own group.
var<workgroup> reduce_scratch: array<f32, WORKGROUP>;

fn reduce_sum(value: f32, local: u32, lanes: u32) -> f32 {
    workgroupBarrier();
    reduce_scratch[local] = value;
    workgroupBarrier();
    for (var step = lanes / 2u; step > 0u; step = step / 2u) {
        if (local % lanes < step) {
            reduce_scratch[local] += reduce_scratch[local + step];
        }
        workgroupBarrier();
    }
    return reduce_scratch[local - local % lanes];
}
//! needs reduce
// out[r, c] = (x[r, c] - mean) / sqrt(variance + eps) · w[c] + b[c] over each row (Ba et al. 2016, arXiv:1607.06450).
// A second sweep sums the squared differences from the mean, so a large mean costs no digits of the variance.
// Grid: one workgroup per row; an invocation takes every WORKGROUP-th column.
struct Params {
    rows: u32,
    columns: u32,
    stride: u32,    // elements from one row to the next
    eps: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;             // [rows, columns]
@group(0) @binding(2) var<storage, read> weight: array<f32>;        // [columns]
@group(0) @binding(3) var<storage, read> bias: array<f32>;          // [columns]
@group(0) @binding(4) var<storage, read_write> out: array<f32>;     // [rows, columns]

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let row = id.y * grid.x + id.x;
    let count = select(0u, params.columns, row < params.rows);
    let base = row * params.stride;
    var sum = 0.0;
    for (var c = local; c < count; c += WORKGROUP) {
        sum += x[base + c];
    }
    let mean = reduce_sum(sum, local, WORKGROUP) / f32(params.columns);
    sum = 0.0;
    for (var c = local; c < count; c += WORKGROUP) {
        let d = x[base + c] - mean;
        sum = fma(d, d, sum);
    }
    let scale = 1.0 / sqrt(reduce_sum(sum, local, WORKGROUP) / f32(params.columns) + params.eps);
    for (var c = local; c < count; c += WORKGROUP) {
        out[base + c] = fma((x[base + c] - mean) * scale, weight[c], bias[c]);
    }
}
