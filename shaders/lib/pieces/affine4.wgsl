// Weights in 4 bits, eight to a u32, lowest first, in pieces of 4 bytes. pieces_part is 1 + q / 16, the bits of q in the
// fraction of a float: fewer instructions than converting integers; lib/scaling takes the 1 away.
alias Piece = u32;
const PIECES4 = 2u;      // groups of four elements in a piece
const PIECES_UNIT = 16.0;
@group(1) @binding(0) var<storage, read> weights_data: array<u32>;

fn pieces_load(at: u32) -> Piece {
    return weights_data[at];
}

fn pieces_part(piece: Piece, u: u32) -> vec4<f32> {
    let low = vec4<u32>(piece << 19u, piece << 15u, piece << 11u, piece << 7u);
    let high = vec4<u32>(piece << 3u, piece >> 1u, piece >> 5u, piece >> 9u);
    let at = select(low, high, u == 1u);
    return bitcast<vec4<f32>>((at & vec4<u32>(0x00780000u)) | vec4<u32>(0x3f800000u));
}
