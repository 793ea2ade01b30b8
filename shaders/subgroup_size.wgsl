// How many neighbouring invocations make a subgroup: drivers report a range. An invocation writes the size if the first
// lane of its subgroup is the one it must be where subgroups are runs of neighbours, otherwise 0. Grid: one workgroup.
@group(0) @binding(0) var<storage, read_write> out: array<u32>;         // [64]

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) local: u32) {
    let size = subgroupAdd(1u);
    let first = subgroupBroadcast(local, 0u);
    let lane = subgroupExclusiveAdd(1u);
    out[local] = select(0u, size, first == local / size * size && lane == local % size);
}
