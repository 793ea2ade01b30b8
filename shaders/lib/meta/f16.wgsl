// Scale and bias of a quantization group: a pair of float16 in a u32. meta_load(group): (scale, bias).
@group(1) @binding(1) var<storage, read> weights_meta: array<u32>;

fn meta_load(group: u32) -> vec2<f32> {
    let bits = weights_meta[group];
    return unpack2x16float(bits);
}
