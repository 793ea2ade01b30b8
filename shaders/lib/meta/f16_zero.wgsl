//! const ZERO
// The scale of a group, two float16 to a u32; the bias is implied: -ZERO · scale.
@group(1) @binding(1) var<storage, read> weights_meta: array<u32>;

fn meta_load(group: u32) -> vec2<f32> {
    let bits = weights_meta[group / 2u];
    let pair = unpack2x16float(bits);
    let scale = pair[group % 2u];
    return vec2<f32>(scale, -f32(ZERO) * scale);
}
