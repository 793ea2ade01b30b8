//! const LANES GATHERED SHARED
//! enable subgroups
// Sums vec4s over LANES neighbouring invocations (a power of two) and keeps the sums in workgroup memory, by index. Shuffles
// add inside a subgroup of any size from 4 to 128; gather_get adds the sums of several subgroups. The size is counted,
// because drivers may report a range.
// gather_put(index, value, local, used): stores the sum; the first `used` elements matter. Every invocation calls it in
// uniform control flow; neighbours pass the same index. gather_get(index): the sum, for any invocation after a barrier.
// Until the first gather_put, the kernel may use SHARED vec4s of gather_sums, and ends that by a barrier.
var<workgroup> gather_sums: array<vec4<f32>, max(GATHERED * LANES / 4u, SHARED)>;
var<private> gather_size: u32;

fn gather_put(index: u32, value: vec4<f32>, local: u32, used: u32) {
    let size = min(LANES, subgroupAdd(1u));     // a branch on a private variable counts as non-uniform
    gather_size = size;
    var sum = value + subgroupShuffleXor(value, 1u);
    sum += subgroupShuffleXor(sum, 2u);
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
    if (local % size == 0u) {
        gather_sums[local % LANES / size * GATHERED + index] = sum;
    }
}

fn gather_get(index: u32) -> vec4<f32> {
    var sum = gather_sums[index];
    for (var i = 1u; i < LANES / gather_size; i++) {
        sum += gather_sums[i * GATHERED + index];
    }
    return sum;
}
