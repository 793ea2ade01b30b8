//! needs gumbel select
//! const CHUNK STOPS
// Samples the next token of every row from the tokens inside the row's cut: arg max of the score, or of
// score · factor + Gumbel noise, which is a draw from the softmax. Ties keep the lower id. NaN and infinity are detected
// by their exponent bits and flagged. The token goes to the row of the next step, whose position advances, and is counted.
// A row that ends here (a stop id, its last position, a score that is not finite) becomes a padding row: later steps write
// nothing to its sequence.
// Grid of `partial`: rows · chunks workgroups, each reduces CHUNK scores. Grid of `final_`: rows workgroups, each reduces
// the chunks of a row. An invocation takes every WIDTH-th score or chunk.
const WIDTH = 256u;
const PICKERS = 16u;         // invocations that reduce the candidates of all
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
var<workgroup> value_of: array<f32, WIDTH>;
var<workgroup> id_of: array<u32, WIDTH>;
var<workgroup> flag_of: array<u32, WIDTH>;

fn better(value: f32, id: u32, than: f32, than_id: u32) -> bool {
    return value > than || (value == than && id < than_id);
}

// Leaves the best of candidates local, local + stride, … (`count` of them) at index local.
fn best_of(local: u32, count: u32, stride: u32) {
    var top = value_of[local];
    var top_id = id_of[local];
    var any_flag = flag_of[local];
    for (var i = 1u; i < count; i++) {
        let other = local + i * stride;
        any_flag |= flag_of[other];
        if (better(value_of[other], id_of[other], top, top_id)) {
            top = value_of[other];
            top_id = id_of[other];
        }
    }
    value_of[local] = top;
    id_of[local] = top_id;
    flag_of[local] = any_flag;
}

// Best of the workgroup's candidates; only invocation 0 gets it.
fn pick(local: u32, value: f32, id: u32, flag: u32) -> vec4<u32> {
    value_of[local] = value;
    id_of[local] = id;
    flag_of[local] = flag;
    workgroupBarrier();
    if (local < PICKERS) {
        best_of(local, WIDTH / PICKERS, PICKERS);
    }
    workgroupBarrier();
    if (local == 0u) {
        best_of(0u, PICKERS, 1u);
    }
    return vec4<u32>(bitcast<u32>(value_of[0]), id_of[0], flag_of[0], 0u);
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

@compute @workgroup_size(WIDTH)
fn partial(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
           @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let row = min(group / params.chunks, params.rows - 1u);
    let begin = group % params.chunks * CHUNK;
    let draw = draws[row * DRAW];
    let position = step_rows[row].y + 1u;
    var top = -3.4028234e38;
    var top_id = 0xffffffffu;
    var flag = 0u;
    for (var token = begin + local; token < min(begin + CHUNK, params.vocab); token += WIDTH) {
        var value = scores[row * params.stride + token];
        let inside = select_kept(select_key_of(value), token, cuts[row].xy);
        flag |= select(0u, 1u, (bitcast<u32>(value) & 0x7f800000u) == 0x7f800000u);
        if (draw.y != 0u) {
            value = fma(value, bitcast<f32>(draw.y), gumbel(draw.x, position, token));
        }
        if (inside && better(value, token, top, top_id)) {
            top = value;
            top_id = token;
        }
    }
    let found = pick(local, top, top_id, flag);
    if (local == 0u && group / params.chunks < params.rows) {
        best[group] = found;
    }
}

@compute @workgroup_size(WIDTH)
fn final_(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
          @builtin(local_invocation_index) local: u32) {
    let group = id.y * grid.x + id.x;
    let row = min(group, params.rows - 1u);
    var top = -3.4028234e38;
    var top_id = 0xffffffffu;
    var flag = 0u;
    for (var c = local; c < params.chunks; c += WIDTH) {
        let found = best[row * params.chunks + c];
        flag |= found.z;
        if (better(bitcast<f32>(found.x), found.y, top, top_id)) {
            top = bitcast<f32>(found.x);
            top_id = found.y;
        }
    }
    let found = pick(local, top, top_id, flag);
    if (local == 0u && group < params.rows) {
        let token = min(found.y, params.vocab - 1u);
        step_rows[row].x = token;
        step_rows[row].y += 1u;
        counts[step_rows[row].z * params.stride + token] += 1u;
        let logprob = logits[row * params.stride + token] - bitcast<f32>(cuts[row].z);
        let over = ends(row, token, step_rows[row].y) || found.z != 0u;
        result[row] = vec4<u32>(token, found.z, bitcast<u32>(logprob), select(0u, 1u, over));
        if (over) {
            step_rows[row].y = 0u;
            step_rows[row].z = params.idle;
        }
    }
}
