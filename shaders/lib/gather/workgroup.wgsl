//! const LANES GATHERED WORKGROUP
// Sums of vectors over LANES neighbouring invocations (a power of two), left in workgroup memory under an index: by a
// binary tree. gather_put: by every invocation, in uniform control flow, the index the same for neighbours; gather_get:
// after a barrier, by any.
var<workgroup> gather_sums: array<vec4<f32>, GATHERED>;
var<workgroup> gather_scratch: array<vec4<f32>, WORKGROUP>;

fn gather_put(index: u32, value: vec4<f32>, local: u32) {
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
