//! needs lora bias
// The second half of a low-rank change: out[m, n] = bias[n] + scale · Σᵣ t[m, r] · B[n, r], for the adapter that row m uses;
// rows without an adapter get the bias alone. The product takes out as its bias. The order of additions is that of r.
// Columns n of a product that fuses up to three matrices belong to the first, second or third of them.
// Grid: ceil(m · n4 / 32) workgroups; an invocation computes four columns.
struct Params {
    m: u32,
    n4: u32,            // vec4s in a row of out
    t_stride: u32,      // elements from one row of t to the next
    second: u32,        // first column of the second matrix
    third: u32,         // first column of the third matrix
    alternate: u32,     // 1: even columns belong to the first matrix, odd ones to the second
    bias_stride: u32,   // 0: the bias is a vector
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> t: array<f32>;                 // [m, t_stride]
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;   // [m, n4]

struct Parts {      // of the matrices that four columns belong to
    first: vec4<u32>,
    rank: vec4<u32>,
    scale: vec4<f32>,
}

fn matrix_of(n: u32) -> u32 {
    return select(u32(n >= params.second) + u32(n >= params.third), n % 2u, params.alternate == 1u);
}

fn parts_of(used: LoraUse, n: u32) -> Parts {
    let a = lora_part(used, matrix_of(n));
    let b = lora_part(used, matrix_of(n + 1u));
    let c = lora_part(used, matrix_of(n + 2u));
    let d = lora_part(used, matrix_of(n + 3u));
    let scale = bitcast<vec4<f32>>(vec4<u32>(a.z, b.z, c.z, d.z));
    return Parts(vec4<u32>(a.x, b.x, c.x, d.x), vec4<u32>(a.y, b.y, c.y, d.y), scale * used.scale);
}

@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let at = (id.y * grid.x + id.x) * 32u + local;
    if (at >= params.m * params.n4) {
        return;
    }
    let m = at / params.n4;
    let n4 = at % params.n4;
    let n = n4 * 4u;
    var value = vec4<f32>(bias_load(m, n), bias_load(m, n + 1u), bias_load(m, n + 2u), bias_load(m, n + 3u));
    let used = lora_use(m);
    if (used.on) {
        let parts = parts_of(used, n);
        let most = max(max(parts.rank.x, parts.rank.y), max(parts.rank.z, parts.rank.w));
        let first = m * params.t_stride + parts.first;
        var sum = vec4<f32>();
        for (var r = 0u; r < most; r++) {
            let from_t = first + min(vec4<u32>(r), max(parts.rank, vec4<u32>(1u)) - 1u);
            let v = vec4<f32>(t[from_t.x], t[from_t.y], t[from_t.z], t[from_t.w]);
            let b = lora_pool[lora_up_first(used) + r * params.n4 + n4];
            sum = select(sum, fma(v, b, sum), vec4<u32>(r) < parts.rank);
        }
        value += sum * parts.scale;
    }
    out[at] = value;
}
