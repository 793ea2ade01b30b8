//! needs words
// Norm of a product: RMSNorm as a factor that scales a row of products, so that it needs no dispatch of its own. x is the
// prenorm buffer (lib/prenorm.wgsl) that epilogue/add_norm or begin_step wrote: residual × norm weight, then sums of
// squares. norm_partial(m, lane, lanes): the part of the sum of squares of row m that one of `lanes` lanes adds up.
// norm_parts(m, lane, lanes): that part, as four sums. norm_scale(total): 1 / sqrt(mean + eps).
const NORM_SUMS = 1u;   // sums that norm_scale needs

// The first load is outside of the loop: if it is the only one, GPUs do not wait for it here.
fn norm_parts(m: u32, lane: u32, lanes: u32) -> vec4<f32> {
    let end = params.x_stride4;
    let base = m * end;
    let first = params.sums + lane;
    var sum = select(vec4<f32>(), words_floats(x[base + min(first, end - 1u)]), first < end);
    for (var i = first + lanes; i < end; i += lanes) {
        sum += words_floats(x[base + i]);
    }
    return sum;
}

fn norm_partial(m: u32, lane: u32, lanes: u32) -> f32 {
    let sum = norm_parts(m, lane, lanes);
    return (sum.x + sum.y) + (sum.z + sum.w);
}

fn norm_scale(total: f32) -> f32 {
    return 1.0 / sqrt(total / f32(params.columns) + params.eps);
}
