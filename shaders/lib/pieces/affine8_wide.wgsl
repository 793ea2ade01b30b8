//! needs digits
// Weights in 8 bits with the layout and the functions of pieces/affine8, in pieces of 8 bytes.
alias Piece = vec2<u32>;
const PIECES4 = 2u;      // groups of four weights in a piece
const PIECES_UNIT = 256.0;
@group(1) @binding(0) var<storage, read> weights_data: array<vec2<u32>>;

fn pieces_load(at: u32) -> Piece {
    return weights_data[at];
}

fn pieces_part(piece: Piece, u: u32) -> vec4<f32> {
    return digits_eight(select(piece.x, piece.y, u == 1u));
}
