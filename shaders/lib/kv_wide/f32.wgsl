//! needs words
// A layer's cache as float32, read only, in loads of 16 bytes. kv_wide_part(raw, u): the u-th four elements of a load.
alias KvRaw = Words;
const KV_WIDE = 1u;     // groups of four elements in a load
@group(1) @binding(0) var<storage, read> kv: array<Words>;          // layout: lib/paged.wgsl

fn kv_wide_part(raw: KvRaw, u: u32) -> vec4<f32> {
    return words_floats(raw);
}
