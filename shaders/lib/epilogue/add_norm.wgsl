//! needs prenorm
// Epilogue: adds the product × factor to the residual, and writes the prenorm buffer of the next norm (lib/prenorm.wgsl).
// epilogue_early(m, n, count): loads the inputs of epilogue; a kernel may call it as soon as n is known.
// epilogue(m, n, value, count, early): takes columns n to n + count - 1 (at most 4) of row m; early is from epilogue_early.
// n is a multiple of 4.
@group(2) @binding(1) var<storage, read_write> out: array<f32>;         // [m, columns] residual
struct Early {
    residual: vec4<f32>,
    weight: vec4<f32>,
}

fn epilogue_early(m: u32, n: u32, count: u32) -> Early {
    let at = m * params.out_stride + n;
    let last = at + count - 1u;
    let v = vec4<f32>(out[at], out[min(at + 1u, last)], out[min(at + 2u, last)], out[min(at + 3u, last)]);
    return Early(v, norm_weight[n / 4u]);
}

fn epilogue(m: u32, n: u32, value: vec4<f32>, count: u32, early: Early) {
    let at = m * params.out_stride + n;
    let inside = vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(count);
    let v = select(vec4<f32>(), early.residual + value * params.factor, inside);
    out[at] = v.x;
    if (count > 1u) { out[at + 1u] = v.y; }
    if (count > 2u) { out[at + 2u] = v.z; }
    if (count > 3u) { out[at + 3u] = v.w; }
    prenorm_store(m, n, v, early.weight);
}
