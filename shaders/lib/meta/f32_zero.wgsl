//! const ZERO
// Scale of a quantization group: a float32; the bias is -ZERO · scale. meta_load(group): (scale, bias).
@group(1) @binding(1) var<storage, read> weights_meta: array<f32>;

fn meta_load(group: u32) -> vec2<f32> {
    let scale = weights_meta[group];
    return vec2<f32>(scale, -f32(ZERO) * scale);
}
