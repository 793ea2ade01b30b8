//! grid rows/64
// out[r, c] = (x[r, c] - mean) / √(variance + eps) · weight[c] + bias[c]. An invocation computes a row.
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

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x;
    if (row >= params.rows) {
        return;     // allowed, because no barrier follows
    }
    let base = row * params.columns;
    var mean = 0.0;
    for (var c = 0u; c < params.columns; c++) {
        mean += x[base + c];
    }
    mean /= f32(params.columns);
    var variance = 0.0;
    for (var c = 0u; c < params.columns; c++) {
        let d = x[base + c] - mean;
        variance += d * d;
    }
    variance /= f32(params.columns);
    let scale = 1.0 / sqrt(variance + params.eps);
    for (var c = 0u; c < params.columns; c++) {
        out[base + c] = (x[base + c] - mean) * scale * weight[c] + bias[c];
    }
}
