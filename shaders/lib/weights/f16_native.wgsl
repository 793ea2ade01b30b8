//! enable f16
// Weights as float16 by the shader-f16 feature. weights_load(i): elements 4i to 4i + 3, exactly.
@group(1) @binding(0) var<storage, read> weights_data: array<vec4<f16>>;

fn weights_load(i: u32) -> vec4<f32> {
    return vec4<f32>(weights_data[i]);
}
