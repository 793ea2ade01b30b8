// Scale and bias of a quantization group: a pair of bfloat16 in a u32. meta_load(group): (scale, bias).
@group(1) @binding(1) var<storage, read> weights_meta: array<u32>;

fn meta_load(group: u32) -> vec2<f32> {
    let bits = weights_meta[group];
    return bitcast<vec2<f32>>(vec2<u32>(bits << 16u, bits & 0xffff0000u));
}
