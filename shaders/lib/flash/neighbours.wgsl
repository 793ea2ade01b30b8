//! needs kv_wide paged neighbours score
//! const QUERIES
// Flash attention with the interface of flash/workgroup, by eight neighbours without workgroup memory: for software
// adapters. In a block of 16 positions, a lane computes the scores of two. Then every lane sums its own elements of the
// weighted values over all 16. With four positions a lane, drivers keep fewer sums in registers, and the last block of a
// run wastes more.
const FLASH_BLOCK = 16u;
const FLASH_WORKGROUP = 8u;
const FLASH_LOWEST = -1.0e30;
const FLASH_CHUNKS = (D4 + 7u) / 8u;                  // chunks of a key, eight vec4s each
const FLASH_LOADS = D4 / KV_WIDE;                     // loads of a key or a value
const FLASH_ITEMS = (FLASH_LOADS + 7u) / 8u;          // loads of a value per lane
@group(0) @binding(1) var<storage, read> pages: array<u32>;         // [slots, table] page numbers

struct Flash {
    lane: u32,
    key: vec2<u32>,                                   // first load of each of the lane's two keys
    to_value: u32,                                    // loads from a key to its value
    query: array<array<vec4<f32>, QUERIES>, FLASH_CHUNKS>,   // the lane's vec4 of each chunk
    weight: array<vec2<f32>, QUERIES>,                // scores of the lane's two positions, then weights
    top: array<f32, QUERIES>,
    sum: array<f32, QUERIES>,                         // sum of the lane's own weights
    acc: array<vec4<f32>, QUERIES * FLASH_ITEMS * KV_WIDE>,
    raw: array<KvRaw, 2>,
}

// Adds the part of vec4 i of a chunk to the scores. i is a constant.
fn flash_multiply(f: ptr<function, Flash>, chunk: u32, i: u32) {
    let c = chunk * 8u + i;
    if (c >= D4) {
        return;
    }
    if (i % KV_WIDE == 0u) {
        f.raw[0] = kv[f.key.x + c / KV_WIDE];
        f.raw[1] = kv[f.key.y + c / KV_WIDE];
    }
    let k0 = kv_wide_part(f.raw[0], i % KV_WIDE);
    let k1 = kv_wide_part(f.raw[1], i % KV_WIDE);
    for (var q = 0u; q < QUERIES; q++) {
        let v = neighbours_get(f.query[chunk][q], i);
        f.weight[q] += vec2<f32>(dot(k0, v), dot(k1, v));
    }
}

// Adds a value, weighted for each query.
fn flash_value(f: ptr<function, Flash>, key: u32, weight: array<f32, QUERIES>) {
    for (var item = 0u; item < FLASH_ITEMS; item++) {
        let raw = kv[key + f.to_value + min(item * 8u + f.lane, FLASH_LOADS - 1u)];
        for (var u = 0u; u < KV_WIDE; u++) {
            let v = kv_wide_part(raw, u);
            for (var q = 0u; q < QUERIES; q++) {
                let a = (q * FLASH_ITEMS + item) * KV_WIDE + u;
                f.acc[a] = fma(vec4<f32>(weight[q]), v, f.acc[a]);
            }
        }
    }
}

// Adds the weighted values of lane i's positions. i is a constant. Positions past the end have the weight 0.
fn flash_values(f: ptr<function, Flash>, i: u32) {
    let key = bitcast<vec4<u32>>(neighbours_get(vec4<f32>(bitcast<vec2<f32>>(f.key), 0.0, 0.0), i));
    var first: array<f32, QUERIES>;
    var second: array<f32, QUERIES>;
    for (var q = 0u; q < QUERIES; q++) {
        let weight = neighbours_get(vec4<f32>(f.weight[q], 0.0, 0.0), i);
        first[q] = weight.x;
        second[q] = weight.y;
    }
    flash_value(f, key.x, first);
    flash_value(f, key.y, second);
}

// Turns scores into weights exp(score - top), updates top and sum, and rescales the accumulator.
fn flash_softmax(f: ptr<function, Flash>, q: u32, position: u32, end: u32) {
    let last = min(flash_last(q) + 1u, end);
    let at = vec2<u32>(position, position + 1u);
    let seen = (at < vec2<u32>(last)) & (at >= vec2<u32>(flash_first(q)));
    let score = select(vec2<f32>(FLASH_LOWEST), score_at(vec4<f32>(f.weight[q], 0.0, 0.0), q, position).xy, seen);
    let top = max(f.top[q], neighbours_max(max(score.x, score.y)));
    let keep = exp(f.top[q] - top);
    let weight = select(vec2<f32>(), exp(score - vec2<f32>(top)), seen);
    f.weight[q] = weight;
    f.sum[q] = fma(f.sum[q], keep, weight.x + weight.y);
    f.top[q] = top;
    for (var a = 0u; a < FLASH_ITEMS * KV_WIDE; a++) {
        f.acc[q * FLASH_ITEMS * KV_WIDE + a] *= keep;
    }
}

fn flash_run(local: u32, table: u32, kv_head: u32, kv_heads: u32, begin: u32, end: u32) {
    var f: Flash;
    f.lane = local;
    f.to_value = kv_heads * PAGE * FLASH_LOADS;
    for (var chunk = 0u; chunk < FLASH_CHUNKS; chunk++) {
        let c = chunk * 8u + local;
        for (var q = 0u; q < QUERIES; q++) {
            f.query[chunk][q] = flash_query(q, min(c, D4 - 1u));
        }
    }
    for (var q = 0u; q < QUERIES; q++) {
        f.top[q] = FLASH_LOWEST;
    }
    for (var first = begin; first < end; first += FLASH_BLOCK) {
        let position = first + local * 2u;
        let held = min(position, end - 1u);   // the lane's two positions share a page
        let key = paged_index(pages[table + held / PAGE], 0u, kv_head, kv_heads, 0u);
        let place = min(vec2<u32>(position, position + 1u), vec2<u32>(end - 1u)) % vec2<u32>(PAGE);
        f.key = (vec2<u32>(key) + place * D4) / KV_WIDE;
        for (var q = 0u; q < QUERIES; q++) {
            f.weight[q] = vec2<f32>();
        }
        for (var chunk = 0u; chunk < FLASH_CHUNKS; chunk++) {
            flash_multiply(&f, chunk, 0u);
            flash_multiply(&f, chunk, 1u);
            flash_multiply(&f, chunk, 2u);
            flash_multiply(&f, chunk, 3u);
            flash_multiply(&f, chunk, 4u);
            flash_multiply(&f, chunk, 5u);
            flash_multiply(&f, chunk, 6u);
            flash_multiply(&f, chunk, 7u);
        }
        for (var q = 0u; q < QUERIES; q++) {
            flash_softmax(&f, q, position, end);
        }
        flash_values(&f, 0u);
        flash_values(&f, 1u);
        flash_values(&f, 2u);
        flash_values(&f, 3u);
        flash_values(&f, 4u);
        flash_values(&f, 5u);
        flash_values(&f, 6u);
        flash_values(&f, 7u);
    }
    for (var q = 0u; q < QUERIES; q++) {
        let sum = neighbours_sum(f.sum[q]);
        for (var a = 0u; a < FLASH_ITEMS * KV_WIDE; a++) {
            let c = (a / KV_WIDE * 8u + local) * KV_WIDE + a % KV_WIDE;
            if (c < D4) {
                flash_store(q, c, f.acc[q * FLASH_ITEMS * KV_WIDE + a], sum);
            }
        }
        if (local == 0u) {
            flash_end(q, f.top[q], sum);
        }
    }
}
