//! const WOVEN
// Index in memory of a row of weights: rows n, n + 32, n + 64, … are consecutive. 32 neighbouring rows are read side by
// side, each at its own place in memory. The next 32 rows continue at these places, so the processor has prefetched their
// beginnings. In plain order, the memory after a row is the next row, which is being read too: prefetching it gains nothing.
// order_row(row, rows): the index; the rows of a part are padded to a multiple of 64.
fn order_row(row: u32, rows: u32) -> u32 {
    return row % WOVEN * (2u * ((rows + 2u * WOVEN - 1u) / (2u * WOVEN))) + row / WOVEN;
}
