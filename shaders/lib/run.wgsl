//! needs kv_wide paged
//! const QUERIES RUN
// Loads and scores of attention_decode_whole. An invocation loads the key of one position of the run. It also loads values,
// for one load along the head, one query and one slice of the positions.
const D_LOADS = D4 / KV_WIDE;                   // loads of a key or a value
const SLICES = RUN / (D_LOADS * QUERIES);       // slices of the positions
@group(0) @binding(1) var<storage, read> pages: array<u32>;         // [slots, table] page numbers
var<workgroup> run_queries: array<vec4<f32>, QUERIES * D4>;     // [query, D4]
var<workgroup> run_weights: array<vec4<f32>, RUN>;              // [position] of each query: score, then e^(score - top)
struct RunValues {
    a: KvRaw,
    b: KvRaw,
    c: KvRaw,
    d: KvRaw,
}
var<private> run_table: u32;
var<private> run_kv_head: u32;

// Index of the first load of a position's key (which = 0) or value (which = 1).
fn run_at(which: u32, position: u32) -> u32 {
    let page = pages[run_table + position / PAGE];
    return paged_index(page, which, run_kv_head, params.kv_heads, position) / KV_WIDE;
}

// Load c of four values of a slice: of positions p, p + SLICES, p + 2 SLICES and p + 3 SLICES of the run.
fn run_values(begin: u32, count: u32, p: u32, c: u32) -> RunValues {
    let last = count - 1u;
    var out: RunValues;
    out.a = kv[run_at(1u, begin + min(p, last)) + c];
    out.b = kv[run_at(1u, begin + min(p + SLICES, last)) + c];
    out.c = kv[run_at(1u, begin + min(p + 2u * SLICES, last)) + c];
    out.d = kv[run_at(1u, begin + min(p + 3u * SLICES, last)) + c];
    return out;
}

// Weight of position p of the run for query i; 0 from position `count` on.
fn run_weight(p: u32, count: u32, i: u32) -> f32 {
    return select(0.0, run_weights[min(p, RUN - 1u)][i], p < count);
}

// so_far plus the products of load c of a key with the queries.
fn run_score(so_far: vec4<f32>, raw: KvRaw, c: u32) -> vec4<f32> {
    var out = so_far;
    for (var u = 0u; u < KV_WIDE; u++) {
        let k = kv_wide_part(raw, u);
        let at = c * KV_WIDE + u;
        out.x += dot(run_queries[at], k);
        if (QUERIES > 1u) {
            out.y += dot(run_queries[D4 + at], k);
        }
        if (QUERIES > 2u) {
            out.z += dot(run_queries[2u * D4 + at], k);
        }
        if (QUERIES > 3u) {
            out.w += dot(run_queries[3u * D4 + at], k);
        }
    }
    return out;
}
