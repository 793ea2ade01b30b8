// Rotary position embedding, in place (Su et al. 2021, arXiv:2104.09864): each pair (a, b) of the first `heads` heads of
// a row becomes (a·cos - b·sin, b·cos + a·sin). The table holds cos and sin for the row's position.
// INTERLEAVED true: a pair is elements 2i and 2i + 1 of a head (Meta's order); false: i and i + half (Hugging Face's).
// Grid: ceil(rows · heads · half / 64) workgroups; an invocation rotates one pair.
override INTERLEAVED: bool = true;
struct Params {
    rows: u32,
    heads: u32,
    half: u32,      // pairs in a head
    stride: u32,    // elements from one row of x to the next
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step_rows: array<vec4<u32>>;   // [rows] token, position, slot, 0
@group(0) @binding(2) var<storage, read> cos_sin: array<vec2<f32>>;     // [positions, half] cos, sin
@group(0) @binding(3) var<storage, read_write> x: array<f32>;           // [rows, at least heads · 2 · half]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let item = (id.y * grid.x + id.x) * 64u + local;
    let per_row = params.heads * params.half;
    let row = item / per_row;
    if (row >= params.rows) {
        return;
    }
    let head = item % per_row / params.half;
    let pair = item % params.half;
    let base = row * params.stride + head * 2u * params.half;
    let a = base + select(pair, 2u * pair, INTERLEAVED);
    let b = a + select(params.half, 1u, INTERLEAVED);
    let rotation = cos_sin[step_rows[row].y * params.half + pair];
    let xa = x[a];
    let xb = x[b];
    x[a] = xa * rotation.x - xb * rotation.y;
    x[b] = xb * rotation.x + xa * rotation.y;
}
