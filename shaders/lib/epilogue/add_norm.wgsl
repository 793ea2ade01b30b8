//! needs prenorm
// What becomes of a product: it is added to the residual stream, and handed to the norm behind it: the sum times the
// norm's weight, and the sum of four squares. epilogue(m, n, v, count, early): columns n to n + count - 1 (at most 4) of
// row m, n a multiple of 4; early is what epilogue_early(m, n, count) loaded for it, as soon as n is known.
@group(2) @binding(1) var<storage, read_write> out: array<f32>;         // [m, columns] the residual stream
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
    let v = select(vec4<f32>(), early.residual + value, inside);
    out[at] = v.x;
    if (count > 1u) { out[at + 1u] = v.y; }
    if (count > 2u) { out[at + 2u] = v.z; }
    if (count > 3u) { out[at + 3u] = v.w; }
    prenorm_store(m, n, v, early.weight);
}
