//! const LANES GATHERED SHARED WORKGROUP
// As gather/workgroup, with the same bits, by about half the barriers: the vec4s of a team are one row of floats, and an
// invocation adds a float of each quarter of the row, which are two steps of the binary tree.
// gather_put(index, value, local, used): stores the sum; the first `used` elements matter. Every invocation calls it in
// uniform control flow; neighbours pass the same index. gather_get(index): the sum, for any invocation after a barrier.
// Until the first gather_put, the kernel may use SHARED vec4s of gather_sums, and ends that by a barrier.
var<workgroup> gather_sums: array<vec4<f32>, max(GATHERED, SHARED)>;
var<workgroup> gather_scratch: array<f32, 4u * WORKGROUP>;

fn gather_four(at: u32) -> vec4<f32> {
    return vec4<f32>(gather_scratch[at], gather_scratch[at + 1u], gather_scratch[at + 2u], gather_scratch[at + 3u]);
}

fn gather_put(index: u32, value: vec4<f32>, local: u32, used: u32) {
    let lane = local % LANES;
    let begin = (local - lane) * 4u;        // of the team's row
    workgroupBarrier();
    gather_scratch[begin + 4u * lane] = value.x;
    gather_scratch[begin + 4u * lane + 1u] = value.y;
    gather_scratch[begin + 4u * lane + 2u] = value.z;
    gather_scratch[begin + 4u * lane + 3u] = value.w;
    workgroupBarrier();
    var left = 4u * LANES;                  // floats in the row
    for (; left > 8u; left /= 4u) {
        let quarter = left / 4u;
        if (lane < quarter) {
            let i = begin + lane;           // nobody else reads or writes it
            let even = gather_scratch[i] + gather_scratch[i + 2u * quarter];
            gather_scratch[i] = even + (gather_scratch[i + quarter] + gather_scratch[i + 3u * quarter]);
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
        var sum = gather_four(begin);
        if (left == 8u) {
            sum += gather_four(begin + 4u);
        }
        gather_sums[index] = sum;
    }
}

fn gather_get(index: u32) -> vec4<f32> {
    return gather_sums[index];
}
