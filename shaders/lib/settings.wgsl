// Sampling settings of a row, as the host packs them (llamagpu/kernels/step.py).
struct Settings {
    inverse_temperature: f32,   // 1 if greedy
    repetition: f32,
    presence: f32,
    frequency: f32,
    top_k: u32,                 // 0: off
    top_p: f32,                 // 1: off
    min_p: f32,                 // 0: off
    logprobs: u32,              // number of likeliest tokens wanted
}
