//! needs flash
// Causal attention of the rows of one sequence, whose K and V are in the cache already:
// out[r, h, :] = Σⱼ softmaxⱼ(scale · q[r, h, :] · K[j, h/group, :]) V[j, h/group, :] over positions j ≤ position(r).
// Grid: heads · ceil(rows / QUERIES) workgroups; a workgroup takes QUERIES rows of one head.
struct Params {
    rows: u32,
    heads: u32,
    kv_heads: u32,
    stride4: u32,     // groups of four from a row of q to the next
    table: u32,       // entries a sequence has in the page table
    scale: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(2) var<storage, read> step_rows: array<vec4<u32>>;   // [rows] token, position, slot, 0
@group(0) @binding(3) var<storage, read> q: array<vec4<f32>>;           // [rows, heads · 4 · D4 …]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;   // [rows, heads · 4 · D4]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let head = group % params.heads;
    let first = group / params.heads * QUERIES;
    if (first >= params.rows) {
        return;
    }
    let last = min(first + QUERIES, params.rows) - 1u;
    for (var item = local; item < QUERIES * D4; item += FLASH_WORKGROUP) {
        let row = min(first + item / D4, last);
        flash_query[item] = q[row * params.stride4 + head * D4 + item % D4] * params.scale;
    }
    for (var i = local; i < QUERIES; i += FLASH_WORKGROUP) {
        flash_last[i] = i32(step_rows[min(first + i, last)].y);
    }
    let table = step_rows[first].z * params.table;
    let kv_head = head / (params.heads / params.kv_heads);
    let acc = flash_run(local, table, kv_head, params.kv_heads, 0u, step_rows[last].y + 1u);
    for (var i = 0u; i < FLASH_ACC; i++) {
        let item = local + FLASH_WORKGROUP * i;
        let row = first + item / D4;
        if (item < QUERIES * D4 && row <= last) {
            out[(row * params.heads + head) * D4 + item % D4] = acc[i] / flash_sum[item / D4];
        }
    }
}
