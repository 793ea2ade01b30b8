// rows[r].x = ids[r]: token ids from a tensor enter the state of a step's rows. Rows in the slot `dump` are padding and keep
// their state. An id that is not in the vocabulary becomes 0, and its position lowers broken[0].
// Grid: ceil(rows / 64) workgroups; an invocation writes one row.
struct Params {
    rows: u32,
    vocab: u32,
    dump: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> ids: array<u32>;                           // [rows]
@group(0) @binding(2) var<storage, read_write> step_rows: array<vec4<u32>>;         // [rows] token, position, slot, place
@group(0) @binding(3) var<storage, read_write> broken: array<atomic<u32>>;          // [1] first position of a bad id

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let row = (id.y * grid.x + id.x) * 64u + local;
    if (row >= params.rows || step_rows[row].z == params.dump) {
        return;
    }
    let token = ids[row];
    if (token < params.vocab) {
        step_rows[row].x = token;
    } else {
        step_rows[row].x = 0u;
        atomicMin(&broken[0], step_rows[row].y);
    }
}
