//! needs flash
// One new position for each of several sequences: attention over a run of 256 positions of the cache, unnormalised.
// partial[r, h, s, :] = Σⱼ exp(scoreⱼ - m) V[j, :] over j in the run, then (m, Σⱼ exp(scoreⱼ - m), 0, 0).
// Grid: rows · kv_heads · ceil(group / QUERIES) · splits workgroups; a workgroup takes QUERIES heads that share K and V.
const RUN = 256u;
struct Params {
    rows: u32,
    kv_heads: u32,
    group: u32,       // query heads to a K/V head
    tiles: u32,       // ceil(group / QUERIES)
    splits: u32,      // runs in the grid; rows with fewer leave early
    stride4: u32,     // groups of four from a row of q to the next
    table: u32,       // entries a sequence has in the page table
    scale: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(2) var<storage, read> step_rows: array<vec4<u32>>;       // [rows] token, position, slot, 0
@group(0) @binding(3) var<storage, read> q: array<vec4<f32>>;               // [rows, heads · 4 · D4 …]
@group(0) @binding(4) var<storage, read_write> partials: array<vec4<f32>>;  // [rows, heads, splits, D4 + 1] of four

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let index = id.y * grid.x + id.x;
    let split = index % params.splits;
    let tile = index / params.splits % params.tiles;
    let kv_head = index / (params.splits * params.tiles) % params.kv_heads;
    let row = index / (params.splits * params.tiles * params.kv_heads);
    if (row >= params.rows) {
        return;
    }
    let position = step_rows[row].y;
    let begin = split * RUN;
    if (begin > position) {
        return;
    }
    let first = tile * QUERIES;
    let last = min(first + QUERIES, params.group) - 1u;
    for (var item = local; item < QUERIES * D4; item += FLASH_WORKGROUP) {
        let head = kv_head * params.group + min(first + item / D4, last);
        flash_query[item] = q[row * params.stride4 + head * D4 + item % D4] * params.scale;
    }
    for (var i = local; i < QUERIES; i += FLASH_WORKGROUP) {
        flash_last[i] = i32(position);
    }
    let end = min(begin + RUN, position + 1u);
    let acc = flash_run(local, step_rows[row].z * params.table, kv_head, params.kv_heads, begin, end);
    for (var i = 0u; i < FLASH_ACC; i++) {
        let item = local + FLASH_WORKGROUP * i;
        let within = item / D4;
        if (item < QUERIES * D4 && first + within <= last) {
            let head = kv_head * params.group + first + within;
            let base = ((row * params.kv_heads * params.group + head) * params.splits + split) * (D4 + 1u);
            partials[base + item % D4] = acc[i];
            if (item % D4 == 0u) {
                partials[base + D4] = vec4<f32>(flash_max[within], flash_sum[within], 0.0, 0.0);
            }
        }
    }
}
