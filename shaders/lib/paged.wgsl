//! const D4 PAGE
// Where a position lives in a layer's cache [pages, 2 (K, V), kv_heads, PAGE, 4 · D4], in units of four elements.
fn paged_index(page: u32, which: u32, kv_head: u32, kv_heads: u32, position: u32) -> u32 {
    return (((page * 2u + which) * kv_heads + kv_head) * PAGE + position % PAGE) * D4;
}
