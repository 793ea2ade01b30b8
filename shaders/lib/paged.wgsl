//! const D4 PAGE
// Layout of a layer's cache: [pages, 2 (K, V), kv_heads, PAGE, 4 · D4]. paged_index(page, which, kv_head, kv_heads,
// position): index of a position's K (which = 0) or V (which = 1), in vec4s.
fn paged_index(page: u32, which: u32, kv_head: u32, kv_heads: u32, position: u32) -> u32 {
    return (((page * 2u + which) * kv_heads + kv_head) * PAGE + position % PAGE) * D4;
}
