//! needs kv paged score
//! const QUERIES
// Flash attention of QUERIES queries over one head of the cache, in blocks of 32 positions. The softmax keeps a running
// maximum, a running sum and an accumulator that it rescales when the maximum grows (Dao et al. 2022, arXiv:2205.14135).
// flash_run(local, table, kv_head, kv_heads, begin, end): attention over positions begin to end - 1; begin is a multiple of
// FLASH_BLOCK. `table` is the index
// of the sequence's first entry in pages.
// The kernel defines flash_query(q, c): vec4 c of query q, scaled; flash_first(q) and flash_last(q): the first
// and the last position that query q sees;
// flash_store(q, c, acc, sum): takes vec4 c of Σⱼ exp(scoreⱼ - max) V[j, :], and sum = Σⱼ exp(scoreⱼ - max);
// flash_end(q, max, sum): takes the maximum and the sum of query q, once.
// This file uses workgroups of 64 and workgroup memory; an invocation holds accumulators `local + 64 · i`.
const FLASH_BLOCK = 32u;
const FLASH_WORKGROUP = 64u;
const FLASH_ACC = (QUERIES * D4 + 63u) / 64u;
const FLASH_LOWEST = -1.0e30;
@group(0) @binding(1) var<storage, read> pages: array<u32>;         // [slots, table] page numbers
var<workgroup> flash_queries: array<vec4<f32>, QUERIES * D4>;
var<workgroup> flash_score: array<f32, QUERIES * FLASH_BLOCK>;
var<workgroup> flash_max: array<f32, QUERIES>;
var<workgroup> flash_sum: array<f32, QUERIES>;
var<workgroup> flash_keep: array<f32, QUERIES>;

// Scores of one block: flash_score[q · 32 + j] is query q against position `first + j`.
fn flash_scores(local: u32, table: u32, kv_head: u32, kv_heads: u32, first: u32, end: u32) {
    for (var item = local; item < QUERIES * FLASH_BLOCK; item += FLASH_WORKGROUP) {
        let q = item / FLASH_BLOCK;
        let position = first + item % FLASH_BLOCK;
        var score = FLASH_LOWEST;
        if (position < end && position >= flash_first(q) && position <= flash_last(q)) {
            let key = paged_index(pages[table + position / PAGE], 0u, kv_head, kv_heads, position);
            var sum = vec4<f32>();
            for (var c = 0u; c < D4; c++) {
                sum = fma(flash_queries[q * D4 + c], kv_load(key + c), sum);
            }
            score = score_at(vec4<f32>((sum.x + sum.y) + (sum.z + sum.w)), q, position).x;
        }
        flash_score[item] = score;
    }
}

// Turns scores into weights exp(score - max), and updates max, sum and the factor that rescales the accumulator.
fn flash_softmax(q: u32) {
    var top = flash_max[q];
    for (var j = 0u; j < FLASH_BLOCK; j++) {
        top = max(top, flash_score[q * FLASH_BLOCK + j]);
    }
    let keep = exp(flash_max[q] - top);
    var sum = 0.0;
    for (var j = 0u; j < FLASH_BLOCK; j++) {
        let score = flash_score[q * FLASH_BLOCK + j];
        let weight = select(exp(score - top), 0.0, score == FLASH_LOWEST);
        flash_score[q * FLASH_BLOCK + j] = weight;
        sum += weight;
    }
    flash_max[q] = top;
    flash_keep[q] = keep;
    flash_sum[q] = flash_sum[q] * keep + sum;
}

fn flash_run(local: u32, table: u32, kv_head: u32, kv_heads: u32, begin: u32, end: u32) {
    var acc = array<vec4<f32>, FLASH_ACC>();
    for (var item = local; item < QUERIES * D4; item += FLASH_WORKGROUP) {
        flash_queries[item] = flash_query(item / D4, item % D4);
    }
    for (var q = local; q < QUERIES; q += FLASH_WORKGROUP) {
        flash_max[q] = FLASH_LOWEST;
        flash_sum[q] = 0.0;
    }
    workgroupBarrier();
    for (var first = begin; first < end; first += FLASH_BLOCK) {
        flash_scores(local, table, kv_head, kv_heads, first, end);
        workgroupBarrier();
        for (var q = local; q < QUERIES; q += FLASH_WORKGROUP) {
            flash_softmax(q);
        }
        workgroupBarrier();
        let count = min(FLASH_BLOCK, end - first);
        for (var i = 0u; i < FLASH_ACC; i++) {
            let item = local + FLASH_WORKGROUP * i;
            if (item < QUERIES * D4) {
                let q = item / D4;
                var sum = acc[i] * flash_keep[q];
                for (var j = 0u; j < count; j++) {
                    let position = first + j;
                    let value = paged_index(pages[table + position / PAGE], 1u, kv_head, kv_heads, position);
                    sum = fma(vec4<f32>(flash_score[q * FLASH_BLOCK + j]), kv_load(value + item % D4), sum);
                }
                acc[i] = sum;
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < FLASH_ACC; i++) {
        let item = local + FLASH_WORKGROUP * i;
        if (item < QUERIES * D4) {
            flash_store(item / D4, item % D4, acc[i], flash_sum[item / D4]);
        }
    }
    for (var q = local; q < QUERIES; q += FLASH_WORKGROUP) {
        flash_end(q, flash_max[q], flash_sum[q]);
    }
}
