// Repeatable noise for weights whose values do not matter: each word is computed from a hash of its index and the seed.
// KIND 0: the hash itself; 1: a float32; 2: two float16; 3: two bfloat16. Floats are uniform from -amplitude to amplitude.
// Grid: ceil(words / 64) workgroups; an invocation computes one word.
const KIND_BITS = 0u;
const KIND_F32 = 1u;
const KIND_F16 = 2u;
override KIND: u32 = 0u;
struct Params {
    words: u32,
    seed: u32,
    amplitude: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;         // [words]

// PCG's output function (O'Neill 2014) over a linear congruential step.
fn hash(n: u32) -> u32 {
    let state = n * 747796405u + 2891336453u;
    let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
    return (word >> 22u) ^ word;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let i = (id.y * grid.x + id.x) * 64u + local;
    if (i >= params.words) {
        return;
    }
    let bits = hash(i ^ params.seed);
    let halves = (vec2<f32>(vec2<u32>(bits & 0xffffu, bits >> 16u)) / 32768.0 - 1.0) * params.amplitude;
    if (KIND == KIND_BITS) {
        out[i] = bits;
    } else if (KIND == KIND_F32) {
        out[i] = bitcast<u32>(halves.x);
    } else if (KIND == KIND_F16) {
        out[i] = pack2x16float(halves);
    } else {
        let wide = bitcast<vec2<u32>>(halves);
        out[i] = (wide.x >> 16u) | (wide.y & 0xffff0000u);
    }
}
