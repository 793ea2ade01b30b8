// Weights as bfloat16 pairs in u32 (a bfloat16 is the upper half of a float32), exact, in pieces of 8 bytes.
// pieces_load(at): a piece. pieces_part(piece, u): its u-th four weights.
alias Piece = vec2<u32>;
const PIECES4 = 1u;      // groups of four weights in a piece
@group(1) @binding(0) var<storage, read> weights_data: array<vec2<u32>>;

fn pieces_load(at: u32) -> Piece {
    return weights_data[at];
}

fn pieces_part(piece: Piece, u: u32) -> vec4<f32> {
    let low = piece << vec2<u32>(16u);
    let high = piece & vec2<u32>(0xffff0000u);
    return bitcast<vec4<f32>>(vec4<u32>(low.x, high.x, low.y, high.y));
}
