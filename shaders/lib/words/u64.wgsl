// Loads of 16 bytes as two u64, for software adapters with shader-int64. Mesa's driver loads one lane and one integer after
// another, with a bounds check each, so that longer integers need half as many instructions. No browser has them.
// words_of(load): four u32; words_floats(load): the same bits as floats.
alias Words = vec2<u64>;

fn words_of(load: Words) -> vec4<u32> {
    let high = load >> vec2<u32>(32u);
    return vec4<u32>(u32(load.x), u32(high.x), u32(load.y), u32(high.y));
}

fn words_floats(load: Words) -> vec4<f32> {
    return bitcast<vec4<f32>>(words_of(load));
}
