//! const WORKGROUP
//! enable subgroups
// reduce_sum(value, local, lanes): the sum over each group of `lanes` neighbouring invocations (a power of two). Shuffles
// add inside a subgroup of any size from 4 to 128, workgroup memory beyond it. The size is counted, because drivers may
// report a range. Every invocation of the workgroup calls it in uniform control flow, and gets the sum of its own group.
var<workgroup> reduce_scratch: array<f32, WORKGROUP>;

fn reduce_sum(value: f32, local: u32, lanes: u32) -> f32 {
    let size = subgroupAdd(1u);
    var sum = value;
    for (var step = 1u; step < min(lanes, size); step = step * 2u) {
        sum += subgroupShuffleXor(sum, step);
    }
    workgroupBarrier();
    reduce_scratch[local] = sum;
    workgroupBarrier();
    if (lanes > size) {
        let first = local - local % lanes;
        sum = 0.0;
        for (var i = 0u; i < lanes; i += size) {
            sum += reduce_scratch[first + i];
        }
    }
    return sum;
}
