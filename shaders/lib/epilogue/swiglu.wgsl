//! needs silu
// What becomes of a product with interleaved gate and up rows: silu(gate) · up is stored, at half the column.
// epilogue(m, n, v, count, early): columns n to n + count - 1 (at most 4) of row m; n and count are even. Nothing needs to
// be loaded for it early.
@group(2) @binding(1) var<storage, read_write> out: array<f32>;         // [m, n / 2]
struct Early {
    nothing: u32,
}

fn epilogue_early(m: u32, n: u32, count: u32) -> Early {
    return Early();
}

fn epilogue(m: u32, n: u32, value: vec4<f32>, count: u32, early: Early) {
    let at = m * params.out_stride + n / 2u;
    out[at] = silu(value.x) * value.y;
    if (count > 2u) { out[at + 1u] = silu(value.z) * value.w; }
}
