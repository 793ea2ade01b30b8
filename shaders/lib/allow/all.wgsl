// Tokens that a row may take: all. allow_score(row, token, score): the score.
fn allow_score(row: u32, token: u32, score: f32) -> f32 {
    return score;
}
