//! needs fold words
// Weights as bfloat16 pairs in u32 (a bfloat16 is the upper half of a float32), exact. weights_raw(at): a load of 16 bytes.
// weights_part(raw, u): the u-th four weights of a load. weights_load(i): elements 4i to 4i + 3.
alias WeightsRaw = vec4<u32>;
const WEIGHTS_WIDE = 2u;     // groups of four weights in a load
@group(1) @binding(0) var<storage, read> weights_data: array<Words>;

fn weights_raw(at: u32) -> WeightsRaw {
    return words_of(weights_data[at]);
}

fn weights_part(raw: WeightsRaw, u: u32) -> vec4<f32> {
    let bits = select(raw.xy, raw.zw, u == 1u);
    let low = bits << vec2<u32>(16u);
    let high = bits & vec2<u32>(0xffff0000u);
    return bitcast<vec4<f32>>(vec4<u32>(low.x, high.x, low.y, high.y));
}

fn weights_load(i: u32) -> vec4<f32> {
    return weights_part(words_of(weights_data[i / 2u]), i % 2u);
}
