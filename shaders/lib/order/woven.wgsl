//! const WOVEN
// Where a row of a weight matrix lies: rows n, n + 32, n + 64, … follow one another, so that 32 neighbouring rows, which
// are read side by side, are 32 streams through memory that go on where the next 32 rows begin. Processors fetch the next
// line of a stream beforehand; rows that are read side by side and lie side by side leave them nothing to fetch.
fn order_row(row: u32, rows: u32) -> u32 {
    return row % WOVEN * (2u * ((rows + 2u * WOVEN - 1u) / (2u * WOVEN))) + row / WOVEN;
}
