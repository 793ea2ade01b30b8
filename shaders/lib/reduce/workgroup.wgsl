//! const WORKGROUP
// reduce_sum(value, local, lanes): the sum over each group of `lanes` neighbouring invocations (a power of two), by a binary
// tree in workgroup memory.
// Every invocation of the workgroup calls it in uniform control flow, and gets the sum of its own group.
var<workgroup> reduce_scratch: array<f32, WORKGROUP>;

fn reduce_sum(value: f32, local: u32, lanes: u32) -> f32 {
    workgroupBarrier();
    reduce_scratch[local] = value;
    workgroupBarrier();
    for (var step = lanes / 2u; step > 0u; step = step / 2u) {
        if (local % lanes < step) {
            reduce_scratch[local] += reduce_scratch[local + step];
        }
        workgroupBarrier();
    }
    return reduce_scratch[local - local % lanes];
}
