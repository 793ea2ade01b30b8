//! needs words
// A layer's cache as float16 pairs, read only, in loads of 16 bytes; the size of a head must be a multiple of eight.
// kv_wide_part(raw, u): the u-th four elements of a load.
alias KvRaw = Words;
const KV_WIDE = 2u;     // groups of four elements in a load
@group(1) @binding(0) var<storage, read> kv: array<Words>;          // layout: lib/paged.wgsl

fn kv_wide_part(raw: KvRaw, u: u32) -> vec4<f32> {
    let words = words_of(raw);
    let bits = select(words.xy, words.zw, u == 1u);
    return vec4<f32>(unpack2x16float(bits.x), unpack2x16float(bits.y));
}
