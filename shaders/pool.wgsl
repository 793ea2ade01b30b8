//! const MODE
// Pools the rows of each sequence: out[s, :] = Σᵣ weight(r) x[r, :] / Σᵣ weight(r) over the rows r of sequence s.
// MODE 0: the mean; 1: the first row; 2: the maximum; 3: the last row; 4: the mean with weights 1, 2, 3, …; 5: the sum
// divided by the square root of the count.
// Grid: count · ceil(columns4 / 64) workgroups; an invocation computes four elements.
struct Params {
    count: u32,       // sequences
    columns4: u32,    // vec4s in a row
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> sequences: array<vec4<u32>>;   // [count] first row, number of rows
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;           // [rows, columns]
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;   // [count, columns]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let across = (params.columns4 + 63u) / 64u;
    let s = group / across;
    let c = group % across * 64u + local;
    if (s >= params.count || c >= params.columns4) {
        return;
    }
    let first = sequences[s].x;
    let rows = sequences[s].y;
    var value = vec4<f32>();
    if (MODE == 1u || MODE == 3u) {
        value = x[(first + select(0u, max(rows, 1u) - 1u, MODE == 3u)) * params.columns4 + c];
    } else {
        value = select(vec4<f32>(), x[first * params.columns4 + c], MODE == 2u);
        for (var r = 0u; r < rows; r++) {
            let v = x[(first + r) * params.columns4 + c];
            if (MODE == 2u) {
                value = max(value, v);
            } else {
                value = fma(v, vec4<f32>(select(1.0, f32(r + 1u), MODE == 4u)), value);
            }
        }
        let count = f32(max(rows, 1u));
        if (MODE == 0u) {
            value /= count;
        } else if (MODE == 4u) {
            value /= 0.5 * count * (count + 1.0);
        } else if (MODE == 5u) {
            value /= sqrt(count);
        }
    }
    out[s * params.columns4 + c] = value;
}
