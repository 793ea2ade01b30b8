// Weights as bfloat16 pairs in u32: the upper half of a float32. weights_load(i): elements 4i to 4i + 3, exactly.
@group(1) @binding(0) var<storage, read> weights_data: array<vec2<u32>>;

fn weights_load(i: u32) -> vec4<f32> {
    let bits = weights_data[i];
    let low = bits << vec2<u32>(16u);
    let high = bits & vec2<u32>(0xffff0000u);
    return vec4<f32>(bitcast<vec2<f32>>(vec2<u32>(low.x, high.x)), bitcast<vec2<f32>>(vec2<u32>(low.y, high.y)));
}
