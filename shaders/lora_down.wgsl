//! needs product source norm reduce chain lora
//! const LANES
// The first half of a low-rank change: t[m, r] = scale(m) · Σₖ x[m, k] · A[r, k], for the rows r of A of the adapter that row m
// uses; rows of t without an adapter stay as they are. LANES neighbouring invocations share k and take every LANES-th vec4.
// The order of additions depends on LANES and k alone: not on other rows, and not on other adapters.
// Grid: m · ceil(params.rows / (WORKGROUP / LANES)) workgroups, for adapters of up to params.rows rows.
@group(0) @binding(2) var<storage, read_write> out: array<f32>;     // t: [m, params.out_stride]
const TEAMS = WORKGROUP / LANES;    // rows r of a workgroup

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let deep = (params.rows + TEAMS - 1u) / TEAMS;
    let m = min(group / deep, params.m - 1u);
    let r = group % deep * TEAMS + local / LANES;
    let lane = local % LANES;
    let used = lora_use(m);
    let inside = group / deep < params.m && r < lora_ranks(used);
    var sum = 0.0;
    if (inside) {
        let row = lora_first(used) + r * params.k4;
        for (var k = lane; k < params.k4; k += LANES) {
            sum = chain(sum, source_load(m, k), lora_pool[row + k]);
        }
    }
    let total = reduce_sum(sum, local, LANES);
    let scale = norm_scale(reduce_sum(norm_partial(m, lane, LANES), local, LANES));
    if (inside && lane == 0u) {
        out[m * params.out_stride + r] = total * scale;
    }
}
