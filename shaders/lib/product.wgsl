// What every product of vectors with a weight matrix W [n, k] is told: out[m, n] = Σₖ x[m, k] · W[n, k].
struct Params {
    m: u32,           // rows of x
    rows: u32,        // rows of this part of W
    first: u32,       // row of the whole of W that the part begins with
    k4: u32,          // groups of four along k
    stride: u32,      // loads of 16 bytes from a row of W to the next
    groups: u32,      // quantization groups in a row of W
    x_stride4: u32,   // groups of four from a row of x to the next
    out_stride: u32,
    sums: u32,        // norm/rms: where in a row of x the partial sums begin, in groups of four
    eps: f32,
    columns: u32,     // norm/rms: elements that were summed; epilogue/add_norm: elements of a row of out
    heads: u32,       // epilogue/qkv: query heads; source/merge: heads
    kv_heads: u32,
    splits: u32,      // source/merge: runs that the partial results have room for
}
@group(0) @binding(0) var<uniform> params: Params;
