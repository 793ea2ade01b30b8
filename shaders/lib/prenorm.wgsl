// Prenorm buffer: a row is the residual × the weight of the next norm, padded to vec4s, then one sum of squares of the
// residual for each vec4 (read by lib/norm/rms.wgsl). prenorm_store(m, n, v, weight): writes columns n to n + 3 of row m,
// and their sum of squares. prenorm_stride(columns4): elements from one row to the next.
@group(2) @binding(2) var<storage, read_write> prenorm: array<f32>;     // [m, prenorm_stride(columns4)]
@group(2) @binding(3) var<storage, read> norm_weight: array<vec4<f32>>; // [columns]

fn prenorm_store(m: u32, n: u32, v: vec4<f32>, weight: vec4<f32>) {
    let columns4 = (params.columns + 3u) / 4u;
    let base = m * prenorm_stride(columns4);
    let scaled = v * weight;
    for (var i = 0u; i < 4u; i++) {
        prenorm[base + n + i] = scaled[i];
    }
    prenorm[base + 4u * columns4 + n / 4u] = dot(v, v);
}

fn prenorm_stride(columns4: u32) -> u32 {
    return 4u * (columns4 + (columns4 + 3u) / 4u);
}
