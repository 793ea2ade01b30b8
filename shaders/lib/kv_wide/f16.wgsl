// A layer's cache as float16 pairs, read only, in loads of 16 bytes; the size of a head must be a multiple of eight.
// kv_wide_part(raw, u): the u-th four elements of a load.
alias KvRaw = vec4<u32>;
const KV_WIDE = 2u;     // groups of four elements in a load
@group(1) @binding(0) var<storage, read> kv: array<vec4<u32>>;      // layout: lib/paged.wgsl

fn kv_wide_part(raw: KvRaw, u: u32) -> vec4<f32> {
    let bits = select(raw.xy, raw.zw, u == 1u);
    return vec4<f32>(unpack2x16float(bits.x), unpack2x16float(bits.y));
}
