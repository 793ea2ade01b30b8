//! needs meta
//! const GROUP
// Weights in 8 bits, four to a u32, lowest first: w = scale · q + bias, both of the group of GROUP along the row.
// weights_load(i): elements 4i to 4i + 3; rows have no padding.
@group(1) @binding(0) var<storage, read> weights_data: array<u32>;

fn weights_load(i: u32) -> vec4<f32> {
    let bits = vec4<u32>(weights_data[i]) >> vec4<u32>(0u, 8u, 16u, 24u);
    let m = meta_load(i / (GROUP / 4u));
    return fma(vec4<f32>(bits & vec4<u32>(0xffu)), vec4<f32>(m.x), vec4<f32>(m.y));
}
