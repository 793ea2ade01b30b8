// A layer's cache as float16 pairs, read only, for devices without shader-f16. kv_load(i): elements 4i to 4i + 3.
@group(1) @binding(0) var<storage, read> kv: array<vec2<u32>>;      // layout: lib/paged.wgsl

fn kv_load(i: u32) -> vec4<f32> {
    let bits = kv[i];
    return vec4<f32>(unpack2x16float(bits.x), unpack2x16float(bits.y));
}
