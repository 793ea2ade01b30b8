// Index in memory of a row of weights. order_row(row, rows): the row itself.
fn order_row(row: u32, rows: u32) -> u32 {
    return row;
}
