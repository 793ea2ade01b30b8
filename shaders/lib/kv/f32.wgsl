// A layer's cache as float32, read only. kv_load(i): elements 4i to 4i + 3.
@group(1) @binding(0) var<storage, read> kv: array<vec4<f32>>;      // layout: lib/paged.wgsl

fn kv_load(i: u32) -> vec4<f32> {
    return kv[i];
}
