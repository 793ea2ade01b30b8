//! needs chain
//! const ACROSS
// Registers of an invocation of product_tiled. tile_add(sum, v, w): sum plus the products of v (four k of x, for one m) and
// w (the same four k of W).
struct TileSum {        // sums of one m: columns 4 tn to 4 tn + 3 of the tile, and 64 further on
    low: vec4<f32>,
    high: vec4<f32>,
}
struct TileBlock {      // four k of W, for the columns of a TileSum
    low: mat4x4<f32>,
    high: mat4x4<f32>,
}

fn tile_add(sum: TileSum, v: vec4<f32>, w: TileBlock) -> TileSum {
    var out: TileSum;
    out.low = tile_chain(sum.low, v, w.low);
    if (ACROSS > 1u) {
        out.high = tile_chain(sum.high, v, w.high);
    }
    return out;
}

fn tile_chain(sum: vec4<f32>, v: vec4<f32>, w: mat4x4<f32>) -> vec4<f32> {
    return vec4<f32>(chain(sum.x, v, w[0]), chain(sum.y, v, w[1]), chain(sum.z, v, w[2]), chain(sum.w, v, w[3]));
}
