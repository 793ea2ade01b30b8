//! needs digits
// Weights in 8 bits, four to a u32, lowest bits first, in pieces of 4 bytes. pieces_load(at): a piece.
// pieces_part(piece, u): 1 + q / 256 for its u-th four weights; lib/scaling removes the 1.
alias Piece = u32;
const PIECES4 = 1u;      // groups of four weights in a piece
const PIECES_UNIT = 256.0;
@group(1) @binding(0) var<storage, read> weights_data: array<u32>;

fn pieces_load(at: u32) -> Piece {
    return weights_data[at];
}

fn pieces_part(piece: Piece, u: u32) -> vec4<f32> {
    return digits_eight(piece);
}
