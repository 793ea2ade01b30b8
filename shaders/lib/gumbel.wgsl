// Gumbel noise from integers alone: the same (seed, position, token) gives the same noise on every adapter, in any batch.
// The hash is pcg3d of Jarzynski and Olano 2020 (Journal of Computer Graphics Techniques 9:3).
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

// -log(-log u) for u in (0, 1) with 23 bits.
fn gumbel(seed: u32, position: u32, token: u32) -> f32 {
    let u = (f32(gumbel_bits(seed, position, token) >> 9u) + 0.5) * 1.1920928955078125e-7;
    return -log(-log(u));
}
