// What every product of vectors with a weight matrix W [rows, k] binds: out[m, n] = Σₖ x[m, k] · W[n, k].
struct Params {
    m: u32,           // rows of x
    start: u32,       // the first of them that this dispatch takes (matvec)
    rows: u32,        // rows of this part of W
    first: u32,       // column of `out` that the part's first row makes
    k4: u32,          // groups of four along k
    stride4: u32,     // the same with the padding of a row of W
    x_stride4: u32,
    out_stride: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;           // [m, k]
@group(0) @binding(2) var<storage, read_write> out: array<f32>;         // [m, all rows]

fn product_sum4(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}
