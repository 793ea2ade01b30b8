//! enable subgroups
// Exchange among eight neighbouring invocations, which must be exactly one subgroup; the device counts the subgroup size
// before it chooses a variant that needs this file. neighbours_get(value, i): the value that lane i holds.
// neighbours_sum(value) and neighbours_max(value): the sum and the maximum over the eight.
// subgroupBroadcast needs a constant lane, hence the cases. i is a constant in each call, so that a single case is left.
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
