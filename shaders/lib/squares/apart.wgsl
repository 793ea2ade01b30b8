//! needs product norm gather
//! const VECTORS LANES PASSES WORKGROUP
// Sums of squares of VECTORS rows of x, by which a norm scales. All invocations of the workgroup share the additions; the
// teams gather their parts apart from the sums of products.
// squares_load(first, local): an invocation's part, for the rows of x from `first` on.
// squares_join(sum, squares): what a team gathers with the products of a row of x; here the products alone.
// squares_put(squares, local): gathers the parts; every invocation calls it in uniform control flow.
// squares_total(c): the sum for row c, for any invocation after a barrier.
const SQUARES_JOINED = 0u;          // elements that squares_join adds to a sum
const SQUARES_TEAMS = WORKGROUP / LANES;
const SQUARES_AT = SQUARES_TEAMS * PASSES * VECTORS;    // sums of products that are gathered before
struct Squares {                    // of four rows of x each
    low: vec4<f32>,
    high: vec4<f32>,
}

fn squares_load(first: u32, local: u32) -> Squares {
    var squares: Squares;
    for (var c = 0u; c < min(4u, VECTORS) * NORM_SUMS; c++) {
        squares.low[c] = norm_partial(min(first + c, params.m - 1u), local, WORKGROUP);
    }
    for (var c = 4u; c < VECTORS * NORM_SUMS; c++) {
        squares.high[c - 4u] = norm_partial(min(first + c, params.m - 1u), local, WORKGROUP);
    }
    return squares;
}

fn squares_join(sum: vec4<f32>, squares: Squares) -> vec4<f32> {
    return sum;
}

fn squares_put(squares: Squares, local: u32) {
    if (NORM_SUMS > 0u) {
        let team = local / LANES;
        gather_put(SQUARES_AT + team, squares.low, local, min(4u, VECTORS));
        if (VECTORS > 4u) {
            gather_put(SQUARES_AT + SQUARES_TEAMS + team, squares.high, local, 4u);
        }
    }
}

fn squares_total(c: u32) -> f32 {
    var total = 0.0;
    for (var t = 0u; t < SQUARES_TEAMS * NORM_SUMS; t++) {
        total += gather_get(SQUARES_AT + c / 4u * SQUARES_TEAMS + t)[c % 4u];
    }
    return total;
}
