//! needs kv_store paged
// Epilogue of the q, k and v projections: rotates the pairs (neighbouring elements) of q and k by the row's position
// (arXiv:2104.09864), stores q, and writes k and v to the row's place in the cache.
// epilogue_early(m, n, count): loads the inputs of epilogue; a kernel may call it as soon as n is known.
// epilogue(m, n, value, count, early): takes columns n to n + 3 of row m; early is from epilogue_early. The columns belong
// to one head, because the size of a head is a multiple of four.
@group(2) @binding(1) var<storage, read_write> out: array<vec4<f32>>;   // [m, heads · 4 · D4]
@group(2) @binding(2) var<storage, read> cos_sin: array<vec4<f32>>;     // [positions, D4] cos, sin, cos, sin
@group(2) @binding(3) var<storage, read> step_rows: array<vec4<u32>>;   // [m] token, position, slot, place
struct Early {
    rotation: vec4<f32>,
    place: u32,
}

fn epilogue_early(m: u32, n: u32, count: u32) -> Early {
    let state = step_rows[m];
    return Early(cos_sin[state.y * D4 + n / 4u % D4], state.w);
}

fn epilogue(m: u32, n: u32, value: vec4<f32>, count: u32, early: Early) {
    let n4 = n / 4u;
    let head = n4 / D4;
    let t = early.rotation;
    var v = value;
    if (head < params.heads + params.kv_heads) {
        v = vec4<f32>(v.x * t.x - v.y * t.y, v.y * t.x + v.x * t.y, v.z * t.z - v.w * t.w, v.w * t.z + v.z * t.w);
    }
    if (head < params.heads) {
        out[m * (params.out_stride / 4u) + n4] = v;
        return;
    }
    let kv = head - params.heads;
    let place = early.place;
    let at = paged_index(place / PAGE, kv / params.kv_heads, kv % params.kv_heads, params.kv_heads, place);
    kv_store(at + n4 % D4, v);
}
