//! needs flash mask
// Attention of consecutive rows, whose K and V are already in the cache. lib/mask says which positions a row sees:
// out[r, h, :] = Σⱼ softmaxⱼ(scale · q[r, h, :] · K[j, h/group, :]) V[j, h/group, :] over positions j.
// Grid: heads · ceil(rows / QUERIES) workgroups; a workgroup takes QUERIES rows of one head. lib/flash divides the positions
// and elements among its invocations.
struct Params {
    rows: u32,
    heads: u32,
    kv_heads: u32,
    stride4: u32,     // vec4s from one row of q to the next
    table: u32,       // page table entries of a sequence
    scale: f32,
    window: u32,      // mask/window: positions that a query sees
    cap: f32,         // score/cap
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(2) var<storage, read> step_rows: array<vec4<u32>>;   // [rows] token, position, slot, place
@group(0) @binding(3) var<storage, read> q: array<vec4<f32>>;           // [rows, at least heads · 4 · D4]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;   // [rows, heads · 4 · D4]
var<private> head: u32;
var<private> first: u32;   // first row of the workgroup

fn row_of(i: u32) -> u32 {
    return min(first + i, params.rows - 1u);
}

fn flash_query(i: u32, c: u32) -> vec4<f32> {
    return q[row_of(i) * params.stride4 + head * D4 + c] * params.scale;
}

fn flash_position(i: u32) -> u32 {
    return step_rows[row_of(i)].y;
}

fn flash_first(i: u32) -> u32 {
    return mask_begin(row_of(i), flash_position(i));
}

fn flash_last(i: u32) -> u32 {
    return mask_last(row_of(i), flash_position(i));
}

fn flash_store(i: u32, c: u32, acc: vec4<f32>, sum: f32) {
    if (first + i < params.rows) {
        out[((first + i) * params.heads + head) * D4 + c] = acc * (1.0 / sum);
    }
}

fn flash_end(i: u32, top: f32, sum: f32) {}

@compute @workgroup_size(FLASH_WORKGROUP)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let first_row = group / params.heads * QUERIES;     // no private: WGSL forbids barriers after a branch on one
    if (first_row >= params.rows) {
        return;
    }
    head = group % params.heads;
    first = first_row;
    let last_row = min(first_row + QUERIES - 1u, params.rows - 1u);
    let begin = mask_begin(first_row, step_rows[first_row].y) / FLASH_BLOCK * FLASH_BLOCK;
    let end = mask_last(last_row, step_rows[last_row].y) + 1u;
    let table = step_rows[first_row].z * params.table;
    let kv_head = head / (params.heads / params.kv_heads);
    flash_run(local, table, kv_head, params.kv_heads, begin, end);
}
