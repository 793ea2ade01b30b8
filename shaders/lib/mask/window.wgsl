// Mask of attention: causal, with a sliding window. mask_begin(row, position) and mask_last(row, position): the first and
// the last of the params.window positions that the query of `row`, at `position`, sees.
fn mask_begin(row: u32, position: u32) -> u32 {
    return position + 1u - min(position + 1u, params.window);
}

fn mask_last(row: u32, position: u32) -> u32 {
    return position;
}
