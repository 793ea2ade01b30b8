//! const ZERO
// Scale of a quantization group: two bfloat16 scales to a u32; the bias is -ZERO · scale. meta_load(group): (scale, bias).
@group(1) @binding(1) var<storage, read> weights_meta: array<u32>;

fn meta_load(group: u32) -> vec2<f32> {
    let bits = weights_meta[group / 2u];
    let pair = bitcast<vec2<f32>>(vec2<u32>(bits << 16u, bits & 0xffff0000u));
    let scale = pair[group % 2u];
    return vec2<f32>(scale, -f32(ZERO) * scale);
}
