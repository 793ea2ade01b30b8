//! const D4
// The runs of attention_decode become attention: out[r, h, :] = Σₛ e^(mₛ - M) accₛ / Σₛ e^(mₛ - M) sumₛ, runs in order.
// Grid: ceil(rows · heads · D4 / 64) workgroups; an invocation makes four elements.
const RUN = 256u;
struct Params {
    rows: u32,
    heads: u32,
    splits: u32,      // runs that partials has room for
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step_rows: array<vec4<u32>>;       // [rows] token, position, slot, place
@group(0) @binding(2) var<storage, read> partials: array<vec4<f32>>;        // [rows, heads, splits, D4 + 1] of four
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;       // [rows, heads · 4 · D4]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let item = (id.y * grid.x + id.x) * 64u + local;
    let row = item / (params.heads * D4);
    if (row >= params.rows) {
        return;
    }
    let runs = min(params.splits, step_rows[row].y / RUN + 1u);
    let base = item / D4 * params.splits * (D4 + 1u);
    var top = partials[base + D4].x;
    for (var s = 1u; s < runs; s++) {
        top = max(top, partials[base + s * (D4 + 1u) + D4].x);
    }
    var acc = vec4<f32>();
    var sum = 0.0;
    for (var s = 0u; s < runs; s++) {
        let at = base + s * (D4 + 1u);
        let keep = exp(partials[at + D4].x - top);
        acc = fma(partials[at + item % D4], vec4<f32>(keep), acc);
        sum = fma(partials[at + D4].y, keep, sum);
    }
    out[item] = acc / sum;
}
