// What becomes of a product before it is stored: a bias [columns] is added.
@group(2) @binding(0) var<storage, read> bias: array<f32>;

fn epilogue(value: f32, column: u32) -> f32 {
    return value + bias[column];
}
