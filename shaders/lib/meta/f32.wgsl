// Scale and bias of a quantization group: a pair of float32. meta_load(group): (scale, bias).
@group(1) @binding(1) var<storage, read> weights_meta: array<vec2<f32>>;

fn meta_load(group: u32) -> vec2<f32> {
    return weights_meta[group];
}
