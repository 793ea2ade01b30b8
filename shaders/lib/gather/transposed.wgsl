//! const LANES GATHERED SHARED
//! enable subgroups
// As gather/subgroup, with the same bits, by fewer shuffles: four elements transpose among four lanes while they are added,
// so that a lane carries a single one through the later steps, and elements that do not matter are left out.
// gather_put(index, value, local, used): stores the sum; the first `used` elements matter. Every invocation calls it in
// uniform control flow; neighbours pass the same index. gather_get(index): the sum, for any invocation after a barrier.
// Until the first gather_put, the kernel may use SHARED vec4s of gather_sums, and ends that by a barrier.
var<workgroup> gather_sums: array<vec4<f32>, max(GATHERED * LANES / 4u, SHARED)>;
var<private> gather_size: u32;

fn gather_put(index: u32, value: vec4<f32>, local: u32, used: u32) {
    let size = min(LANES, subgroupAdd(1u));     // a branch on a private variable counts as non-uniform
    gather_size = size;
    // Over bits 0 and 1 of the lane, an invocation gives half of its elements away and keeps the sums of the other half.
    let odd = local % 2u == 1u;
    let upper = local / 2u % 2u == 1u;
    var sum = value.x;
    if (used == 1u) {
        sum += subgroupShuffleXor(sum, 1u);
        sum += subgroupShuffleXor(sum, 2u);
    } else if (used == 2u) {
        sum = select(value.x, value.y, odd) + subgroupShuffleXor(select(value.y, value.x, odd), 1u);
        sum += subgroupShuffleXor(sum, 2u);
    } else {
        let two = select(value.xz, value.yw, odd) + subgroupShuffleXor(select(value.yw, value.xz, odd), 1u);
        sum = select(two.x, two.y, upper) + subgroupShuffleXor(select(two.y, two.x, upper), 2u);
    }
    if (size > 4u) {
        sum += subgroupShuffleXor(sum, 4u);
    }
    if (size > 8u) {
        sum += subgroupShuffleXor(sum, 8u);
    }
    if (size > 16u) {
        sum += subgroupShuffleXor(sum, 16u);
    }
    if (size > 32u) {
        sum += subgroupShuffleXor(sum, 32u);
    }
    if (size > 64u) {
        sum += subgroupShuffleXor(sum, 64u);
    }
    var all = vec4<f32>(sum);               // lane 0 has x, lane 1 y, lane 2 z, lane 3 w
    if (used > 1u) {
        all.y = subgroupShuffleXor(sum, 1u);
    }
    if (used > 2u) {
        let other = subgroupShuffleXor(all.xy, 2u);
        all = vec4<f32>(all.xy, other);
    }
    if (local % size == 0u) {
        gather_sums[local % LANES / size * GATHERED + index] = all;
    }
}

fn gather_get(index: u32) -> vec4<f32> {
    var sum = gather_sums[index];
    for (var i = 1u; i < LANES / gather_size; i++) {
        sum += gather_sums[i * GATHERED + index];
    }
    return sum;
}
