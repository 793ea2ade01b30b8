//! needs silu
// What becomes of a product with interleaved gate and up rows: silu(gate) · up is stored, at half the column.
// epilogue(m, n, v, count): columns n to n + count - 1 of row m; n and count are even.
@group(2) @binding(1) var<storage, read_write> out: array<f32>;         // [m, n / 2]

fn epilogue(m: u32, n: u32, value: vec4<f32>, count: u32) {
    let at = m * params.out_stride + n / 2u;
    out[at] = silu(value.x) * value.y;
    if (count > 2u) { out[at + 1u] = silu(value.z) * value.w; }
}
