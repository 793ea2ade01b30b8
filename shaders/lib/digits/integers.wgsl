// Quantized weights as floats: 1 + q / UNIT. The bits of q become the fraction of a float, which takes fewer instructions
// than converting integers. digits_four(word, upper): four of the eight 4-bit weights in a u32, lowest bits first; UNIT is 16.
// digits_eight(word): the four 8-bit weights; UNIT is 256.
fn digits_four(word: u32, upper: bool) -> vec4<f32> {
    let low = vec4<u32>(word << 19u, word << 15u, word << 11u, word << 7u);
    let high = vec4<u32>(word << 3u, word >> 1u, word >> 5u, word >> 9u);
    let at = select(low, high, upper);
    return bitcast<vec4<f32>>((at & vec4<u32>(0x00780000u)) | vec4<u32>(0x3f800000u));
}

fn digits_eight(word: u32) -> vec4<f32> {
    let at = vec4<u32>(word << 15u, word << 7u, word >> 1u, word >> 9u);
    return bitcast<vec4<f32>>((at & vec4<u32>(0x007f8000u)) | vec4<u32>(0x3f800000u));
}
