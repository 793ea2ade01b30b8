//! needs fold words
// Weights as float32. weights_raw(at): a load of 16 bytes.
// weights_part(raw, u): the u-th four weights of a load. weights_load(i): elements 4i to 4i + 3.
alias WeightsRaw = vec4<f32>;
const WEIGHTS_WIDE = 1u;     // groups of four weights in a load
@group(1) @binding(0) var<storage, read> weights_data: array<Words>;

fn weights_raw(at: u32) -> WeightsRaw {
    return words_floats(weights_data[at]);
}

fn weights_part(raw: WeightsRaw, u: u32) -> vec4<f32> {
    return raw;
}

fn weights_load(i: u32) -> vec4<f32> {
    return words_floats(weights_data[i]);
}
