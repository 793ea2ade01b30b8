//! needs activation
// Epilogue: stores the activation of the product. epilogue_early(m, n, count): loads nothing.
// epilogue(m, n, value, count, early): takes columns n to n + count - 1 (at most 4) of row m; early is from epilogue_early.
@group(2) @binding(1) var<storage, read_write> out: array<f32>;         // [m, n]
struct Early {
    nothing: u32,
}

fn epilogue_early(m: u32, n: u32, count: u32) -> Early {
    return Early();
}

fn epilogue(m: u32, n: u32, value: vec4<f32>, count: u32, early: Early) {
    let at = m * params.out_stride + n;
    out[at] = activation(value.x);
    if (count > 1u) { out[at + 1u] = activation(value.y); }
    if (count > 2u) { out[at + 2u] = activation(value.z); }
    if (count > 3u) { out[at + 3u] = activation(value.w); }
}
