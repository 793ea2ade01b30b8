// Weights as float16 pairs in u32, exact, in pieces of 16 bytes.
// pieces_load(at): a piece. pieces_part(piece, u): its u-th four weights.
alias Piece = vec4<u32>;
const PIECES4 = 2u;      // groups of four weights in a piece
@group(1) @binding(0) var<storage, read> weights_data: array<vec4<u32>>;

fn pieces_load(at: u32) -> Piece {
    return weights_data[at];
}

fn pieces_part(piece: Piece, u: u32) -> vec4<f32> {
    let bits = select(piece.xy, piece.zw, u == 1u);
    return vec4<f32>(unpack2x16float(bits.x), unpack2x16float(bits.y));
}
