// x[r, :] = NaN for rows whose position is broken[0] or later; the others stay.
// Grid: rows · ceil(columns / 256) workgroups; an invocation writes one element.
struct Params {
    rows: u32,
    columns: u32,
    stride: u32,    // elements from one row of x to the next
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step_rows: array<vec4<u32>>;   // [rows] token, position, slot, place
@group(0) @binding(2) var<storage, read> broken: array<u32>;            // [1] first position of a bad id
@group(0) @binding(3) var<storage, read_write> x: array<u32>;           // [rows, columns] bits of f32

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let across = (params.columns + 255u) / 256u;
    let row = group / across;
    let column = group % across * 256u + local;
    if (row < params.rows && column < params.columns && step_rows[row].y >= broken[0]) {
        x[row * params.stride + column] = 0x7fc00000u;
    }
}
