//! needs fold
//! enable f16
// Weights as float16 of the shader-f16 feature, exact. weights_raw(at): 16 bytes, in two loads.
// weights_part(raw, u): the u-th four of these weights. weights_load(i): elements 4i to 4i + 3.
alias WeightsRaw = array<vec4<f16>, 2>;
const WEIGHTS_WIDE = 2u;     // groups of four weights in a load
@group(1) @binding(0) var<storage, read> weights_data: array<vec4<f16>>;

fn weights_raw(at: u32) -> WeightsRaw {
    return WeightsRaw(weights_data[2u * at], weights_data[2u * at + 1u]);
}

fn weights_part(raw: WeightsRaw, u: u32) -> vec4<f32> {
    return vec4<f32>(select(raw[0], raw[1], u == 1u));
}

fn weights_load(i: u32) -> vec4<f32> {
    return vec4<f32>(weights_data[i]);
}
