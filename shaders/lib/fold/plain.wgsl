// How the product of a stretch of a row joins the row's sum, where weights are stored as they are: it is added.
const FOLD4 = 8u;   // groups of four in a stretch

fn fold_join(sum: f32, part: f32, x_sum: f32, group: u32) -> f32 {
    return sum + part;
}
