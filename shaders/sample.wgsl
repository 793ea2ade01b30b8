//! needs gumbel pick select
//! const CHUNK STOPS WIDTH
// Samples the next token of every row from the tokens inside the row's cut: arg max of the score, or of
// score · factor + Gumbel noise, which is a draw from the softmax. Ties keep the lower id. NaN and infinity are detected
// by their exponent bits and flagged. The token goes to the row of the next step, whose position advances, and is counted.
// A row that ends here (a stop id, its last position, a score that is not finite) becomes a padding row: later steps write
// nothing to its sequence.
// Grid of `partial`: rows · chunks workgroups, each reduces CHUNK scores; a single chunk finishes its row. Grid of `final_`:
// rows workgroups, each reduces the chunks of a row. An invocation takes every WIDTH-th score or chunk.
const DRAW = 1u + STOPS / 4u;   // vec4s in a row of draws
struct Params {
    rows: u32,
    vocab: u32,
    stride: u32,            // elements from one row of logits to the next
    chunks: u32,
    idle: u32,              // the slot of padding rows
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;                    // [rows, vocab] raw, for log-probability
@group(0) @binding(3) var<storage, read> draws: array<vec4<u32>>;               // [rows, DRAW] seed, bits of the factor
                                                                                //   (0: no noise), last position, number of
                                                                                //   stop ids; then the stop ids
@group(0) @binding(4) var<storage, read> cuts: array<vec4<u32>>;                // [rows] key, id, bits of log Σ e^logit, 0
@group(0) @binding(5) var<storage, read_write> best: array<vec4<u32>>;          // [rows, chunks] value bits, id, flag, 0
@group(0) @binding(6) var<storage, read_write> step_rows: array<vec4<u32>>;     // [rows] token, position, slot, place
@group(0) @binding(7) var<storage, read_write> counts: array<u32>;              // [slots, vocab] output count; bit 31: in
                                                                                //   the prompt
@group(0) @binding(8) var<storage, read_write> result: array<vec4<u32>>;        // [rows] token, not finite, bits of log-
                                                                                //   probability, ended
// A token of a row as a candidate, if it is inside the row's cut.
fn candidate(row: u32, token: u32, score: f32, value: f32) -> Candidate {
    let flag = select(0u, 1u, (bitcast<u32>(score) & 0x7f800000u) == 0x7f800000u);
    if (select_kept(select_key_of(score), token, cuts[row].xy)) {
        return Candidate(value, token, flag);
    }
    return Candidate(PICK_NONE.value, PICK_NONE.id, flag);
}

fn ends(row: u32, token: u32, position: u32) -> bool {
    let draw = draws[row * DRAW];
    for (var i = 0u; i < min(draw.w, STOPS); i++) {
        if (draws[row * DRAW + 1u + i / 4u][i % 4u] == token) {
            return true;
        }
    }
    return position >= draw.z;
}

// Writes the token of a row to its state, its counts and the result.
fn finish(row: u32, found: Candidate) {
    let token = min(found.id, params.vocab - 1u);
    step_rows[row].x = token;
    step_rows[row].y += 1u;
    counts[step_rows[row].z * params.stride + token] += 1u;
    let logprob = logits[row * params.stride + token] - bitcast<f32>(cuts[row].z);
    let over = ends(row, token, step_rows[row].y) || found.flag != 0u;
    result[row] = vec4<u32>(token, found.flag, bitcast<u32>(logprob), select(0u, 1u, over));
    if (over) {
        step_rows[row].y = 0u;
        step_rows[row].z = params.idle;
    }
}

@compute @workgroup_size(WIDTH)
fn partial(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
           @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let row = min(group / params.chunks, params.rows - 1u);
    let begin = group % params.chunks * CHUNK + local;
    let end = min(begin - local + CHUNK, params.vocab);
    let draw = draws[row * DRAW];
    let position = step_rows[row].y + 1u;
    var top = PICK_NONE;
    // Two loops, one of which is empty: software adapters would compute the noise of a condition that is false.
    let drawn = draw.y != 0u;
    for (var token = select(begin, end, drawn); token < end; token += WIDTH) {
        let score = scores[row * params.stride + token];
        top = pick_better(top, candidate(row, token, score, score));
    }
    for (var token = select(end, begin, drawn); token < end; token += WIDTH) {
        let score = scores[row * params.stride + token];
        let value = fma(score, bitcast<f32>(draw.y), gumbel(draw.x, position, token));
        top = pick_better(top, candidate(row, token, score, value));
    }
    let found = pick(local, top);
    if (local != 0u || group / params.chunks >= params.rows) {
        return;
    }
    if (params.chunks == 1u) {
        finish(row, found);
    } else {
        best[group] = vec4<u32>(bitcast<u32>(found.value), found.id, found.flag, 0u);
    }
}

@compute @workgroup_size(WIDTH)
fn final_(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
          @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let row = min(group, params.rows - 1u);
    var top = PICK_NONE;
    for (var c = local; c < params.chunks; c += WIDTH) {
        let found = best[row * params.chunks + c];
        top = pick_better(top, Candidate(bitcast<f32>(found.x), found.y, found.z));
    }
    let found = pick(local, top);
    if (local == 0u && group < params.rows) {
        finish(row, found);
    }
}
