//! needs fold
// Weights as bfloat16 pairs in u32: the upper half of a float32, read exactly. A load of 16 bytes is weights_raw; its
// u-th group of four elements, weights_part. weights_load(i): elements 4i to 4i + 3.
alias WeightsRaw = vec4<u32>;
const WEIGHTS_WIDE = 2u;
@group(1) @binding(0) var<storage, read> weights_data: array<vec4<u32>>;

fn weights_raw(at: u32) -> WeightsRaw {
    return weights_data[at];
}

fn weights_part(raw: WeightsRaw, u: u32) -> vec4<f32> {
    let bits = select(raw.xy, raw.zw, u == 1u);
    let low = bits << vec2<u32>(16u);
    let high = bits & vec2<u32>(0xffff0000u);
    return bitcast<vec4<f32>>(vec4<u32>(low.x, high.x, low.y, high.y));
}

fn weights_load(i: u32) -> vec4<f32> {
    return weights_part(weights_data[i / 2u], i % 2u);
}
