//! needs settings allow
// Applies sampling settings to each logit l, in this order:
// 1. repetition penalty r (Keskar et al. 2019, arXiv:1909.05858), tokens of prompt or output: l / r if l > 0, else l · r;
// 2. presence and frequency penalties, tokens of the output: l - presence - frequency · count;
// 3. bias and temperature: (l + bias) / temperature;
// 4. the mask, after the division because it keeps the order: lib/allow.
// Grid: rows · ceil(vocab / 256) workgroups; an invocation computes four elements.
struct Params {
    rows: u32,
    vocab: u32,
    stride: u32,        // elements from one row of logits to the next
    mask_words: u32,    // words from one row of masks to the next
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;            // [rows, vocab]
@group(0) @binding(2) var<storage, read> step_rows: array<vec4<u32>>;   // [rows] token, position, slot, 0
@group(0) @binding(3) var<storage, read> settings: array<Settings>;     // [rows]
@group(0) @binding(4) var<storage, read> counts: array<u32>;            // [slots, vocab] output count; bit 31: in the prompt
@group(0) @binding(5) var<storage, read> bias: array<f32>;              // [slots, vocab]
@group(0) @binding(6) var<storage, read_write> scores: array<f32>;      // [rows, vocab]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let across = (params.vocab + 255u) / 256u;
    let row = group / across;
    if (row >= params.rows) {
        return;
    }
    let s = settings[row];
    let state = step_rows[row].z * params.stride;
    for (var i = 0u; i < 4u; i++) {
        let token = group % across * 256u + i * 64u + local;
        if (token < params.vocab) {
            var l = logits[row * params.stride + token];
            let count = counts[state + token];
            if (count != 0u) {
                l = select(l * s.repetition, l / s.repetition, l > 0.0);
            }
            let made = count & 0x7fffffffu;
            if (made != 0u) {
                l = l - s.presence - s.frequency * f32(made);
            }
            let score = (l + bias[state + token]) * s.inverse_temperature;
            scores[row * params.stride + token] = allow_score(row, token, score);
        }
    }
}
