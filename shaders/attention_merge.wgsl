//! needs mask
//! const D4 RUN
// Merges the runs of attention_decode, in order: out[r, h, :] = Σₛ e^(mₛ - M) accₛ / Σₛ e^(mₛ - M) sumₛ with M = max mₛ.
// Grid: ceil(rows · heads · D4 / 64) workgroups; an invocation computes four elements.
struct Params {
    rows: u32,
    heads: u32,
    splits: u32,      // runs that partials holds for each row and head
    window: u32,      // mask/window: positions that a query sees
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step_rows: array<vec4<u32>>;       // [rows] token, position, slot, place
@group(0) @binding(2) var<storage, read> partials: array<vec4<f32>>;        // [rows, heads, splits, D4 + 1] vec4s
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;       // [rows, heads · 4 · D4]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let item = (id.y * grid.x + id.x) * 64u + local;
    let row = item / (params.heads * D4);
    if (row >= params.rows) {
        return;
    }
    let position = step_rows[row].y;
    let runs = min(params.splits, position / RUN - mask_begin(row, position) / RUN + 1u);
    let base = item / D4 * params.splits * (D4 + 1u);
    let last = runs - 1u;
    let width = D4 + 1u;
    var top = partials[base + D4].x;
    for (var s = 0u; s < runs; s += 4u) {       // four loads at once
        let a = partials[base + s * width + D4].x;
        let b = partials[base + min(s + 1u, last) * width + D4].x;
        let c = partials[base + min(s + 2u, last) * width + D4].x;
        let d = partials[base + min(s + 3u, last) * width + D4].x;
        top = max(max(top, max(a, b)), max(c, d));
    }
    var acc = vec4<f32>();
    var sum = 0.0;
    for (var s = 0u; s < runs; s += 4u) {
        for (var i = 0u; i < 4u; i++) {
            let at = base + min(s + i, last) * width;
            let end = partials[at + D4];
            let weight = select(exp(end.x - top), 1.0, end.x == top);   // exactly 1, so a single run keeps its bits
            let keep = select(0.0, weight, s + i < runs);
            acc = fma(partials[at + item % D4], vec4<f32>(keep), acc);
            sum = fma(end.y, keep, sum);
        }
    }
    out[item] = acc / sum;
}
