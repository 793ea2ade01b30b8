// Weights in 4 bits with the layout and the functions of pieces/affine4, in pieces of 8 bytes.
alias Piece = vec2<u32>;
const PIECES4 = 4u;      // groups of four weights in a piece
const PIECES_UNIT = 16.0;
@group(1) @binding(0) var<storage, read> weights_data: array<vec2<u32>>;

fn pieces_load(at: u32) -> Piece {
    return weights_data[at];
}

fn pieces_part(piece: Piece, u: u32) -> vec4<f32> {
    let word = select(piece.x, piece.y, u > 1u);
    let low = vec4<u32>(word << 19u, word << 15u, word << 11u, word << 7u);
    let high = vec4<u32>(word << 3u, word >> 1u, word >> 5u, word >> 9u);
    let at = select(low, high, u % 2u == 1u);
    return bitcast<vec4<f32>>((at & vec4<u32>(0x00780000u)) | vec4<u32>(0x3f800000u));
}
