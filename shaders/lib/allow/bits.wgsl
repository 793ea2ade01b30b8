// Tokens that a row may take: those whose bits are set. allow_score(row, token, score): the score, or a number below all
// scores if the token is not allowed. A score that is not finite stays, so that it is noticed.
const ALLOW_NEVER = -1e30;
@group(0) @binding(7) var<storage, read> masks: array<u32>;     // [rows, params.mask_words], bit t % 32 of word t / 32

fn allow_score(row: u32, token: u32, score: f32) -> f32 {
    let allowed = ((masks[row * params.mask_words + token / 32u] >> (token % 32u)) & 1u) == 1u;
    let finite = (bitcast<u32>(score) & 0x7f800000u) != 0x7f800000u;
    return select(score, ALLOW_NEVER, finite && !allowed);
}
