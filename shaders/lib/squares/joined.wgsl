//! needs product norm gather
//! const LANES ROWS WORKGROUP
// As squares/apart, with the same bits, for one row of x and one or two rows of W: an invocation's part takes the element
// after its products, so that it is gathered with them. Nothing waits for the loads before the products.
const SQUARES_JOINED = 1u;
alias Squares = vec4<f32>;

fn squares_load(first: u32, local: u32) -> Squares {
    return norm_parts(first, local, WORKGROUP);
}

fn squares_join(sum: vec4<f32>, squares: Squares) -> vec4<f32> {
    var out = sum;
    out[ROWS] = (squares.x + squares.y) + (squares.z + squares.w);
    return out;
}

fn squares_put(squares: Squares, local: u32) {}

fn squares_total(c: u32) -> f32 {
    var total = 0.0;
    for (var t = 0u; t < WORKGROUP / LANES; t++) {
        total += gather_get(t)[ROWS];
    }
    return total;
}
