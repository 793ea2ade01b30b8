//! needs fold
// Weights in 4 bits in groups of 16, whose rows need not be a multiple of 16 bytes: as affine4, in loads of 8 bytes.
alias WeightsRaw = vec2<u32>;
const WEIGHTS_WIDE = 4u;
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
