//! needs digits
// Weights in 4 bits with the layout and the functions of pieces/affine4, in pieces of 8 bytes.
alias Piece = vec2<u32>;
const PIECES4 = 4u;      // groups of four weights in a piece
const PIECES_UNIT = 16.0;
@group(1) @binding(0) var<storage, read> weights_data: array<vec2<u32>>;

fn pieces_load(at: u32) -> Piece {
    return weights_data[at];
}

fn pieces_part(piece: Piece, u: u32) -> vec4<f32> {
    return digits_four(select(piece.x, piece.y, u > 1u), u % 2u == 1u);
}
