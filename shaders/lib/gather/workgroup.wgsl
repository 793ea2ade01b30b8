//! const LANES GATHERED SHARED WORKGROUP
// Sums vec4s over LANES neighbouring invocations (a power of two) and keeps the sums in workgroup memory, by index. A binary
// tree adds them.
// gather_put(index, value, local, used): stores the sum; the first `used` elements matter. Every invocation calls it in
// uniform control flow; neighbours pass the same index. gather_get(index): the sum, for any invocation after a barrier.
// Until the first gather_put, the kernel may use SHARED vec4s of gather_sums, and ends that by a barrier.
var<workgroup> gather_sums: array<vec4<f32>, max(GATHERED, SHARED)>;
var<workgroup> gather_scratch: array<vec4<f32>, WORKGROUP>;

fn gather_put(index: u32, value: vec4<f32>, local: u32, used: u32) {
    workgroupBarrier();
    gather_scratch[local] = value;
    workgroupBarrier();
    for (var step = LANES / 2u; step > 0u; step = step / 2u) {
        if (local % LANES < step) {
            gather_scratch[local] += gather_scratch[local + step];
        }
        workgroupBarrier();
    }
    if (local % LANES == 0u) {
        gather_sums[index] = gather_scratch[local];
    }
}

fn gather_get(index: u32) -> vec4<f32> {
    return gather_sums[index];
}
