// Mask of attention: the whole sequence of the query, in both directions. mask_begin(row, position) and
// mask_last(row, position): the first and the last position of the sequence of `row`.
@group(0) @binding(5) var<storage, read> spans: array<vec4<u32>>;       // [rows] first and last position of the sequence

fn mask_begin(row: u32, position: u32) -> u32 {
    return spans[row].x;
}

fn mask_last(row: u32, position: u32) -> u32 {
    return spans[row].y;
}
