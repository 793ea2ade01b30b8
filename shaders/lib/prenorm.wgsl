// The residual stream as its next reader wants it: a row is the stream times the norm's weight, padded to groups of
// four, then one sum of squares for each of those groups (lib/norm/rms.wgsl).
@group(2) @binding(2) var<storage, read_write> prenorm: array<f32>;      // [m, 4 · columns4 + columns4 …]
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
