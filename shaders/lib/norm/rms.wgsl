// The factor that a row of x is owed: x holds the residual stream times the norm's weight, and behind it partial sums of
// the stream's squares (epilogue/add_norm, begin_step), so that RMSNorm needs no pass of its own.
// norm_partial: the part of the sum of row m that one of `lanes` lanes adds up; norm_scale: 1 / sqrt(mean + eps).
const NORM_SUMS = 1u;   // sums that norm_scale needs

fn norm_partial(m: u32, lane: u32, lanes: u32) -> f32 {
    let base = m * params.x_stride4;
    var sum = vec4<f32>();
    for (var i = params.sums + lane; i < params.x_stride4; i += lanes) {
        sum += x[base + i];
    }
    return (sum.x + sum.y) + (sum.z + sum.w);
}

fn norm_scale(total: f32) -> f32 {
    return 1.0 / sqrt(total / f32(params.columns) + params.eps);
}
