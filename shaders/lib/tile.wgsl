//! needs chain
//! const ACROSS
// What an invocation of product_tiled holds: the sums of one m, and four k of the columns of W that belong to them.
struct TileSum {        // of one m: columns 4 tn to 4 tn + 3 of the tile, and 64 further on
    low: vec4<f32>,
    high: vec4<f32>,
}
struct TileBlock {      // of W: four k of the columns of an invocation
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
