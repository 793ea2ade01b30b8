//! const WORKGROUP
//! enable subgroups
// Sums over groups of `lanes` neighbouring invocations (a power of two), by shuffles inside a subgroup of any size from
// 4 to 128 and workgroup memory beyond it. The size is counted, not taken from the driver, which may report a range.
// Every invocation of the workgroup calls it in uniform control flow and gets its group's sum.
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
