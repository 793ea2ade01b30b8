// Weights as float16 pairs in u32, for devices without shader-f16. weights_load(i): elements 4i to 4i + 3, exactly.
@group(1) @binding(0) var<storage, read> weights_data: array<vec2<u32>>;

fn weights_load(i: u32) -> vec4<f32> {
    let bits = weights_data[i];
    return vec4<f32>(unpack2x16float(bits.x), unpack2x16float(bits.y));
}
