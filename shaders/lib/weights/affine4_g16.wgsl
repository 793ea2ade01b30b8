//! needs fold
// Weights in 4 bits in groups of 16, with the layout and the functions of weights/affine4, but in loads of 8 bytes: a row
// need not be a multiple of 16 bytes.
alias WeightsRaw = vec2<u32>;
const WEIGHTS_WIDE = 4u;     // groups of four weights in a load
@group(1) @binding(0) var<storage, read> weights_data: array<vec2<u32>>;

fn weights_raw(at: u32) -> WeightsRaw {
    return weights_data[at];
}

fn weights_part(raw: WeightsRaw, u: u32) -> vec4<f32> {
    let bits = vec4<u32>(raw[u / 2u] >> (u % 2u * 16u)) >> vec4<u32>(0u, 4u, 8u, 12u);
    return vec4<f32>(vec4<i32>(bits & vec4<u32>(0xfu)));
}

fn weights_load(i: u32) -> vec4<f32> {
    return fold_scaled(weights_part(weights_data[i / 4u], i % 4u), i);
}
