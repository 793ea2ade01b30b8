// Mask of attention: causal, with a sliding window. mask_begin(position): the first of the params.window positions that a
// query at `position` sees.
fn mask_begin(position: u32) -> u32 {
    return position + 1u - min(position + 1u, params.window);
}
