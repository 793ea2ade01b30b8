// out[c, r] = x[r, c]. Tiles of 16 × 16 go through workgroup memory, so that neighbouring invocations read and write
// neighbouring memory.
// Grid: ceil(rows / 16) · ceil(columns / 16) workgroups, one per tile, consecutive ones along a row of x; an invocation
// moves one element.
struct Params {
    rows: u32,
    columns: u32,
    x_stride: u32,    // elements from one row of x to the next
    out_stride: u32,  // elements from one row of out to the next
    across: u32,      // tiles along a row of x
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;             // [rows, columns]
@group(0) @binding(2) var<storage, read_write> out: array<f32>;     // [columns, rows]
var<workgroup> tile: array<f32, 272>;   // rows of 17 elements avoid bank conflicts along columns

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_id) local: vec3<u32>) {
    let group = id.y * grid.x + id.x;
    let first_row = group / params.across * 16u;
    let first_column = group % params.across * 16u;
    let row = first_row + local.y;
    let column = first_column + local.x;
    if (row < params.rows && column < params.columns) {
        tile[local.y * 17u + local.x] = x[row * params.x_stride + column];
    }
    workgroupBarrier();
    let out_row = first_column + local.y;
    let out_column = first_row + local.x;
    if (out_row < params.columns && out_column < params.rows) {
        out[out_row * params.out_stride + out_column] = tile[local.x * 17u + local.y];
    }
}
