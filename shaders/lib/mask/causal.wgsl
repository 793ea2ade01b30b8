// Mask of attention: causal. mask_begin(row, position) and mask_last(row, position): the first and the last position that
// the query of `row`, at `position`, sees.
fn mask_begin(row: u32, position: u32) -> u32 {
    return 0u;
}

fn mask_last(row: u32, position: u32) -> u32 {
    return position;
}
