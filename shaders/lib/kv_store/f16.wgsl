// A layer's cache as float16 pairs, written. kv_store(i, value): writes elements 4i to 4i + 3, rounded to nearest. It clamps
// them to the range of float16, because packing is undefined outside it.
@group(1) @binding(2) var<storage, read_write> kv: array<vec2<u32>>;      // layout: lib/paged.wgsl

fn kv_store(i: u32, value: vec4<f32>) {
    let v = clamp(value, vec4<f32>(-65504.0), vec4<f32>(65504.0));
    kv[i] = vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw));
}
