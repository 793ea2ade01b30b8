//! grid rows/1
// out[r, c] = (x[r, c] - mean) / √(variance + eps) · weight[c] + bias[c]. A workgroup computes a row.
const WORKGROUP = 256u;
struct Params {
    rows: u32,
    columns: u32,
    eps: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;             // [rows, columns]
@group(0) @binding(2) var<storage, read> weight: array<f32>;        // [columns]
@group(0) @binding(3) var<storage, read> bias: array<f32>;          // [columns]
@group(0) @binding(4) var<storage, read_write> out: array<f32>;     // [rows, columns]
var<workgroup> partial: array<f32, WORKGROUP>;

// The sum of `value` over the workgroup, in a tree: 128 additions at once, then 64, …, 1.
fn total(value: f32, local: u32) -> f32 {
    workgroupBarrier();     // nobody still reads the previous sum
    partial[local] = value;
    workgroupBarrier();
    for (var step = WORKGROUP / 2u; step > 0u; step /= 2u) {
        if (local < step) {
            partial[local] += partial[local + step];
        }
        workgroupBarrier();
    }
    return partial[0];
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let base = group.x * params.columns;
    var sum = 0.0;
    var squares = 0.0;
    for (var c = local; c < params.columns; c += WORKGROUP) {
        let v = x[base + c];
        sum += v;
        squares += v * v;
    }
    let mean = total(sum, local) / f32(params.columns);
    let variance = total(squares, local) / f32(params.columns) - mean * mean;
    let scale = 1.0 / sqrt(variance + params.eps);
    for (var c = local; c < params.columns; c += WORKGROUP) {
        out[base + c] = (x[base + c] - mean) * scale * weight[c] + bias[c];
    }
}
