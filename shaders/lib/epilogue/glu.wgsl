//! needs activation
// Epilogue of a product with interleaved gate and up rows: stores activation(gate) · up at column n / 2.
// epilogue_early(m, n, count): loads nothing.
// epilogue(m, n, value, count, early): takes columns n to n + count - 1 (at most 4) of row m; early is from epilogue_early.
// n and count are even.
@group(2) @binding(1) var<storage, read_write> out: array<f32>;         // [m, n / 2]
struct Early {
    nothing: u32,
}

fn epilogue_early(m: u32, n: u32, count: u32) -> Early {
    return Early();
}

fn epilogue(m: u32, n: u32, value: vec4<f32>, count: u32, early: Early) {
    let at = m * params.out_stride + n / 2u;
    out[at] = activation(value.x) * value.y;
    if (count > 2u) { out[at + 1u] = activation(value.z) * value.w; }
}
