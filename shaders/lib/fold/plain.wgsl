// Joins the product of a stretch of a row to the row's sum, for weights that are not quantized.
// fold_join(sum, part, x_sum, group): sum + part.
const FOLD4 = 8u;   // vec4s in a stretch

fn fold_join(sum: f32, part: f32, x_sum: f32, group: u32) -> f32 {
    return sum + part;
}
