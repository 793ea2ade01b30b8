// A layer's cache as float32, written. kv_store(i, value): writes elements 4i to 4i + 3.
@group(1) @binding(2) var<storage, read_write> kv: array<vec4<f32>>;      // layout: lib/paged.wgsl

fn kv_store(i: u32, value: vec4<f32>) {
    kv[i] = value;
}
