// Weights as float16 pairs in u32, read exactly, in pieces of 8 bytes, so that neighbours read neighbouring x.
alias Piece = vec2<u32>;
const PIECES4 = 1u;      // groups of four elements in a piece
@group(1) @binding(0) var<storage, read> weights_data: array<vec2<u32>>;

fn pieces_load(at: u32) -> Piece {
    return weights_data[at];
}

fn pieces_part(piece: Piece, u: u32) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(piece.x), unpack2x16float(piece.y));
}
