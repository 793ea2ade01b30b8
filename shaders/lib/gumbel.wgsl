// Gumbel noise keyed by integers: the same (seed, position, token) gives the same noise in any batch. Adapters agree on the
// bits of the hash; they may round the logarithms differently. gumbel_bits(seed, position, token): the hash, pcg3d of
// Jarzynski and Olano 2020 (Journal of Computer Graphics Techniques 9:3).
fn gumbel_bits(seed: u32, position: u32, token: u32) -> u32 {
    var v = vec3<u32>(seed, position, token) * 1664525u + 1013904223u;
    v.x += v.y * v.z;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v = v ^ (v >> vec3<u32>(16u));
    v.x += v.y * v.z;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    return v.x;
}

// -log(1 - w), for w in (0, 1). The largest noise comes from w near 0, where log(1 - w) would keep no digits: WGSL promises
// only an absolute error of 2⁻²¹. So for w up to 1/2 it is the series of 2 atanh(s), with s = w / (2 - w) at most 1/3.
fn gumbel_exponential(w: f32) -> f32 {
    if (w > 0.5) {
        return -log(1.0 - w);
    }
    let s = w / (2.0 - w);
    let q = s * s;
    var sum = 1.0 / 15.0;
    sum = fma(sum, q, 1.0 / 13.0);
    sum = fma(sum, q, 1.0 / 11.0);
    sum = fma(sum, q, 1.0 / 9.0);
    sum = fma(sum, q, 1.0 / 7.0);
    sum = fma(sum, q, 1.0 / 5.0);
    sum = fma(sum, q, 1.0 / 3.0);
    return 2.0 * s * fma(sum, q, 1.0);
}

// The noise: -log(-log(1 - w)), with w in (0, 1) from 23 bits.
fn gumbel(seed: u32, position: u32, token: u32) -> f32 {
    let w = (f32(gumbel_bits(seed, position, token) >> 9u) + 0.5) * 1.1920928955078125e-7;
    return -log(gumbel_exponential(w));
}
