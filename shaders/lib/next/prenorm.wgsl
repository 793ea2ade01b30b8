//! needs prenorm
// What the norm that reads the residual next needs: the prenorm buffer. next_store(m, c, v): writes vec4 c of row m.
fn next_store(m: u32, c: u32, v: vec4<f32>) {
    prenorm_store(m, 4u * c, v, norm_weight[c]);
}
