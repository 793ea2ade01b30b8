// Weights in 8 bits with the layout and the functions of pieces/affine8, in pieces of 8 bytes.
alias Piece = vec2<u32>;
const PIECES4 = 2u;      // groups of four weights in a piece
const PIECES_UNIT = 256.0;
@group(1) @binding(0) var<storage, read> weights_data: array<vec2<u32>>;

fn pieces_load(at: u32) -> Piece {
    return weights_data[at];
}

fn pieces_part(piece: Piece, u: u32) -> vec4<f32> {
    let word = select(piece.x, piece.y, u == 1u);
    let at = vec4<u32>(word << 15u, word << 7u, word >> 1u, word >> 9u);
    return bitcast<vec4<f32>>((at & vec4<u32>(0x007f8000u)) | vec4<u32>(0x3f800000u));
}
