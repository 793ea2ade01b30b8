//! needs fold
// Weights as float16 pairs in u32, for devices without shader-f16, read exactly. A load of 16 bytes is weights_raw; its
// u-th group of four elements, weights_part. weights_load(i): elements 4i to 4i + 3.
alias WeightsRaw = vec4<u32>;
const WEIGHTS_WIDE = 2u;
@group(1) @binding(0) var<storage, read> weights_data: array<vec4<u32>>;

fn weights_raw(at: u32) -> WeightsRaw {
    return weights_data[at];
}

fn weights_part(raw: WeightsRaw, u: u32) -> vec4<f32> {
    let bits = select(raw.xy, raw.zw, u == 1u);
    return vec4<f32>(unpack2x16float(bits.x), unpack2x16float(bits.y));
}

fn weights_load(i: u32) -> vec4<f32> {
    return weights_part(weights_data[i / 2u], i % 2u);
}
