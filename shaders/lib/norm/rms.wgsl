//! needs words
// Norm of a product: RMSNorm as a factor that scales a row of products, so that it needs no dispatch of its own. x is the
// prenorm buffer (lib/prenorm.wgsl) that epilogue/add_norm or begin_step wrote: residual × norm weight, then sums of
// squares. norm_partial(m, lane, lanes): the part of the sum of squares of row m that one of `lanes` lanes adds up.
// norm_scale(total): 1 / sqrt(mean + eps).
const NORM_SUMS = 1u;   // sums that norm_scale needs

fn norm_partial(m: u32, lane: u32, lanes: u32) -> f32 {
    let base = m * params.x_stride4;
    var sum = vec4<f32>();
    for (var i = params.sums + lane; i < params.x_stride4; i += lanes) {
        sum += words_floats(x[base + i]);
    }
    return (sum.x + sum.y) + (sum.z + sum.w);
}

fn norm_scale(total: f32) -> f32 {
    return 1.0 / sqrt(total / f32(params.columns) + params.eps);
}
