// As digits/integers, with the same values, two weights at a time: the bits of q become the fractions of a pair of float16,
// which are converted together. Fractions of ten bits hold both q / 16 and q / 256.
fn digits_pair(bits: u32, mask: u32) -> vec2<f32> {
    return unpack2x16float((bits & mask) | 0x3c003c00u);
}

fn digits_four(word: u32, upper: bool) -> vec4<f32> {
    let a = digits_pair(word << 6u, 0x03c003c0u);       // weights 0 and 4
    let b = digits_pair(word << 2u, 0x03c003c0u);       // weights 1 and 5
    let c = digits_pair(word >> 2u, 0x03c003c0u);
    let d = digits_pair(word >> 6u, 0x03c003c0u);
    return select(vec4<f32>(a.x, b.x, c.x, d.x), vec4<f32>(a.y, b.y, c.y, d.y), upper);
}

fn digits_eight(word: u32) -> vec4<f32> {
    let a = digits_pair(word << 2u, 0x03fc03fcu);       // weights 0 and 2
    let b = digits_pair(word >> 6u, 0x03fc03fcu);       // weights 1 and 3
    return vec4<f32>(a.x, b.x, a.y, b.y);
}
