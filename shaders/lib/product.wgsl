// Parameters of every product of vectors with a weight matrix W [n, k]: out[m, n] = Σₖ x[m, k] · W[n, k].
struct Params {
    m: u32,           // rows of x
    rows: u32,        // rows of this part of W
    first: u32,       // row of the whole W where the part begins
    k4: u32,          // vec4s along k
    stride: u32,      // loads (product_lanes: pieces) from one row of W to the next
    groups: u32,      // quantization groups in a row of W
    x_stride4: u32,   // vec4s from one row of x to the next
    out_stride: u32,  // elements from one row of out to the next
    sums: u32,        // norm/rms: vec4 of a row of x where the sums of squares begin
    eps: f32,
    columns: u32,     // norm/rms: elements whose squares were summed; epilogue/add_norm: elements in a row of out
    heads: u32,       // epilogue/qkv: query heads; source/merge: heads
    kv_heads: u32,    // epilogue/qkv: K/V heads
    splits: u32,      // source/merge: runs that partials holds for each row and head
    window: u32,      // source/merge with mask/window: positions that a query sees
    factor: f32,      // epilogues that store or add: scales the product
    cap: f32,         // epilogue/cap
    bias_stride: u32, // bias/add: elements from one row of the bias to the next; 0 for a vector
}
@group(0) @binding(0) var<uniform> params: Params;
