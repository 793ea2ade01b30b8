//! enable subgroups
// What lane i of eight neighbours holds. For subgroups of exactly eight neighbouring invocations; the device counts them
// before a variant that needs it is chosen. The lane must be a constant, hence the cases: i is one, and one is left.
const NEIGHBOURS = 8u;

fn neighbours_get(value: vec4<f32>, i: u32) -> vec4<f32> {
    switch (i) {
        case 0u: { return subgroupBroadcast(value, 0u); }
        case 1u: { return subgroupBroadcast(value, 1u); }
        case 2u: { return subgroupBroadcast(value, 2u); }
        case 3u: { return subgroupBroadcast(value, 3u); }
        case 4u: { return subgroupBroadcast(value, 4u); }
        case 5u: { return subgroupBroadcast(value, 5u); }
        case 6u: { return subgroupBroadcast(value, 6u); }
        default: { return subgroupBroadcast(value, 7u); }
    }
}

fn neighbours_sum(value: f32) -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < NEIGHBOURS; i++) {
        sum += neighbours_get(vec4<f32>(value), i).x;
    }
    return sum;
}

fn neighbours_max(value: f32) -> f32 {
    var top = value;
    for (var i = 0u; i < NEIGHBOURS; i++) {
        top = max(top, neighbours_get(vec4<f32>(value), i).x);
    }
    return top;
}
