// out[i] = x[first4 + i], in vec4s of u32: copies consecutive rows of any dtype.
// Grid: ceil(count4 / 64) workgroups; an invocation copies 16 bytes.
struct Params {
    first4: u32,    // first vec4 of x to copy
    count4: u32,    // vec4s to copy
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;           // [rows, columns]
@group(0) @binding(2) var<storage, read_write> out: array<vec4<u32>>;   // [end - begin, columns]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let item = (id.y * grid.x + id.x) * 64u + local;
    if (item < params.count4) {
        out[item] = x[params.first4 + item];
    }
}
