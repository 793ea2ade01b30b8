// Reads the first 32 · sectors bytes of a buffer, so that the GPU's L2 cache holds them; for bench_gpu alone.
// Every invocation loads one vec4 of each of EACH sectors of 32 bytes: caches fetch whole sectors. Nothing is written,
// but the compiler cannot know that.
// Grid: ceil(sectors / (256 · EACH)) workgroups.
const EACH: u32 = 4u;
struct Params {
    sectors: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> data: array<vec4<u32>>;    // [2 · sectors, …]
@group(0) @binding(2) var<storage, read_write> sink: array<u32>;    // [1]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let first = (id.y * grid.x + id.x) * 256u * EACH + local;
    var found = vec4<u32>();
    for (var i = 0u; i < EACH; i++) {
        found ^= data[2u * min(first + i * 256u, params.sectors - 1u)];
    }
    if (all(found == vec4<u32>(0x9e3779b9u, 0x7f4a7c15u, 0xf39cc060u, 0x5cedc834u))) {
        sink[0] = found.x;
    }
}
