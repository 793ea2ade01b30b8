//! enable f16
// A layer's cache as float16 of the shader-f16 feature, read only. kv_load(i): elements 4i to 4i + 3.
@group(1) @binding(0) var<storage, read> kv: array<vec4<f16>>;      // layout: lib/paged.wgsl

fn kv_load(i: u32) -> vec4<f32> {
    return vec4<f32>(kv[i]);
}
