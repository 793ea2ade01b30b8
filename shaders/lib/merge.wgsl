// Σₛ e^(mₛ - M) accₛ / Σₛ e^(mₛ - M) sumₛ over the runs of one head, in their order. `partials` is the caller's.
const MERGE_RUN = 256u;

fn merge_runs(position: u32) -> u32 {
    return position / MERGE_RUN + 1u;
}

// Elements 4d to 4d + 3 of the head whose runs begin at `base`.
fn merge_load(base: u32, d: u32, runs: u32) -> vec4<f32> {
    let first = partials[base + D4];
    if (runs == 1u) {
        return partials[base + d] / first.y;
    }
    var top = first.x;
    for (var s = 1u; s < runs; s++) {
        top = max(top, partials[base + s * (D4 + 1u) + D4].x);
    }
    var acc = vec4<f32>();
    var sum = 0.0;
    for (var s = 0u; s < runs; s++) {
        let at = base + s * (D4 + 1u);
        let end = partials[at + D4];
        let keep = exp(end.x - top);
        acc = fma(partials[at + d], vec4<f32>(keep), acc);
        sum = fma(end.y, keep, sum);
    }
    return acc / sum;
}
