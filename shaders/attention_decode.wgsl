//! needs decode flash mask
//! const RUN
// Decode attention, one query row for each of several sequences, over runs of 256 positions of the cache, from the first
// run that the row sees (lib/mask):
// partial[r, h, s, :] = Σⱼ exp(scoreⱼ - m) V[j, :] over j in run s, then (m, Σⱼ exp(scoreⱼ - m), 0, 0), where m is the
// largest score. If the grid has a single run, there is nothing to merge:
// out[r, h, :] = Σⱼ exp(scoreⱼ - m) V[j, :] / Σⱼ exp(scoreⱼ - m).
// Grid: rows · kv_heads · ceil(group / QUERIES) · splits workgroups; a workgroup takes QUERIES heads that share K and V.
// lib/flash divides the positions and elements among its invocations.
// main keeps row and split in locals, too: WGSL forbids barriers after a branch on a private variable, which counts as
// non-uniform.
var<private> own_row: u32;
var<private> own_split: u32;
var<private> kv_head: u32;
var<private> first: u32;   // first query head of the workgroup, counted within the group

fn head_of(i: u32) -> u32 {
    return kv_head * params.group + min(first + i, params.group - 1u);
}

fn flash_query(i: u32, c: u32) -> vec4<f32> {
    return q[own_row * params.stride4 + head_of(i) * D4 + c] * params.scale;
}

fn flash_first(i: u32) -> u32 {
    return mask_begin(own_row, step_rows[own_row].y);
}

fn flash_last(i: u32) -> u32 {
    return step_rows[own_row].y;
}

// Index where the run's results for head i begin.
fn base_of(i: u32) -> u32 {
    let run = (own_row * params.kv_heads * params.group + head_of(i)) * params.splits + own_split;
    return run * select(D4 + 1u, D4, params.splits == 1u);
}

fn flash_store(i: u32, c: u32, acc: vec4<f32>, sum: f32) {
    if (first + i < params.group) {
        partials[base_of(i) + c] = acc / select(1.0, sum, params.splits == 1u);  // as attention_merge divides a single run
    }
}

fn flash_end(i: u32, top: f32, sum: f32) {
    if (first + i < params.group && params.splits > 1u) {
        partials[base_of(i) + D4] = vec4<f32>(top, sum, 0.0, 0.0);
    }
}

@compute @workgroup_size(FLASH_WORKGROUP)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let index = id.y * grid.x + id.x;
    let split = index % params.splits;
    first = index / params.splits % params.tiles * QUERIES;
    kv_head = index / (params.splits * params.tiles) % params.kv_heads;
    let row = index / (params.splits * params.tiles * params.kv_heads);
    if (row >= params.rows) {
        return;
    }
    own_row = row;
    own_split = split;
    let position = step_rows[row].y;
    let seen = mask_begin(row, position);
    let run = seen / RUN + split;
    if (run * RUN > position) {
        return;
    }
    let begin = max(run * RUN, seen / FLASH_BLOCK * FLASH_BLOCK);
    let end = min((run + 1u) * RUN, position + 1u);
    flash_run(local, step_rows[row].z * params.table, kv_head, params.kv_heads, begin, end);
}
