//! needs fold words
// Weights in 4 bits in groups of at least 32, eight to a u32, lowest bits first. weights_raw(at): a load of 16 bytes.
// weights_part(raw, u): the u-th four q of a load, which fold_join scales. weights_load(i): elements 4i to 4i + 3, scaled.
alias WeightsRaw = vec4<u32>;
const WEIGHTS_WIDE = 8u;     // groups of four weights in a load
@group(1) @binding(0) var<storage, read> weights_data: array<Words>;

fn weights_raw(at: u32) -> WeightsRaw {
    return words_of(weights_data[at]);
}

fn weights_part(raw: WeightsRaw, u: u32) -> vec4<f32> {
    let bits = vec4<u32>(raw[u / 2u] >> (u % 2u * 16u)) >> vec4<u32>(0u, 4u, 8u, 12u);
    return vec4<f32>(vec4<i32>(bits & vec4<u32>(0xfu)));    // via i32: converting u32 is slow on some processors
}

fn weights_load(i: u32) -> vec4<f32> {
    return fold_scaled(weights_part(words_of(weights_data[i / 8u]), i % 8u), i);
}
