// Mask of attention: causal. mask_begin(position): the first position that a query at `position` sees.
fn mask_begin(position: u32) -> u32 {
    return 0u;
}
