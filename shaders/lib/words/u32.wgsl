// Loads of 16 bytes as four u32. words_of(load): the four u32; words_floats(load): the same bits as floats.
alias Words = vec4<u32>;

fn words_of(load: Words) -> vec4<u32> {
    return load;
}

fn words_floats(load: Words) -> vec4<f32> {
    return bitcast<vec4<f32>>(load);
}
