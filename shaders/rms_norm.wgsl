//! needs reduce next
//! const ADD
// RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467): y = x[r, c] · w[c] / sqrt(mean(x[r, :]²) + eps). With ADD 0 the
// kernel stores out[r, c] = y. With ADD 1 it adds y to out, the residual. lib/next prepares the norm that reads out next.
// Grid: one workgroup per row; an invocation takes every WORKGROUP-th vec4.
struct Params {
    rows: u32,
    columns: u32,
    columns4: u32,  // vec4s in a row, padding included
    eps: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;           // [rows, columns]
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;      // [columns]
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;   // [rows, columns]

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let row = id.y * grid.x + id.x;
    let inside = row < params.rows;
    let base = row * params.columns4;
    var sum = vec4<f32>();
    if (inside) {
        for (var c = local; c < params.columns4; c += WORKGROUP) {
            let v = x[base + c];
            sum = fma(v, v, sum);
        }
    }
    let total = reduce_sum((sum.x + sum.y) + (sum.z + sum.w), local, WORKGROUP);
    let scale = 1.0 / sqrt(total / f32(params.columns) + params.eps);
    if (inside) {
        for (var c = local; c < params.columns4; c += WORKGROUP) {
            var v = x[base + c] * scale * weight[c];
            if (ADD == 1u) {
                v += out[base + c];
            }
            out[base + c] = v;
            next_store(row, c, v);
        }
    }
}
