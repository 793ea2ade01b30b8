//! enable subgroups
// Writes the subgroup size, or 0 if lanes are not contiguous. The size is counted, because drivers report a range.
// Grid: one workgroup; each invocation writes the size of its own subgroup.
@group(0) @binding(0) var<storage, read_write> out: array<u32>;         // [64]

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) local: u32) {
    let size = subgroupAdd(1u);
    let first = subgroupBroadcast(local, 0u);
    let lane = subgroupExclusiveAdd(1u);
    out[local] = select(0u, size, first == local / size * size && lane == local % size);
}
