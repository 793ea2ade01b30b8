// Weights as float32. weights_load(i): elements 4i to 4i + 3.
@group(1) @binding(0) var<storage, read> weights_data: array<vec4<f32>>;

fn weights_load(i: u32) -> vec4<f32> {
    return weights_data[i];
}
