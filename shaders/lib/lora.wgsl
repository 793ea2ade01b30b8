// Low-rank adapters of one product (LoRA, arXiv:2106.09685), and the one that each row of a step uses.
// lora_use(m): the record of row m's adapter and the scale of its request; none if the row uses no adapter.
// lora_first(used), lora_ranks(used): the vec4 of lora_pool where its matrices A begin, and the rows of all of them together.
// lora_up_first(used): the vec4 of lora_pool where its matrix B begins.
// lora_part(used, i): of the i-th of up to three matrices that the product fuses: its first row of A, its rank, and the bits
// of its scale.
const LORA_RECORD = 4u;     // vec4s of a record: (A, ranks, B, 0), then three parts (first row, rank, scale, 0)
@group(1) @binding(0) var<storage, read> step_rows: array<vec4<u32>>;       // [m] token, position, slot, place
@group(1) @binding(1) var<storage, read> lora_slots: array<vec4<u32>>;      // [slots] number of the adapter + 1 or 0, scale
@group(1) @binding(2) var<storage, read> lora_records: array<vec4<u32>>;    // [adapters, LORA_RECORD]
@group(1) @binding(3) var<storage, read> lora_pool: array<vec4<f32>>;       // rows of A [ranks, k], rows of Bᵀ [rank, n]
struct LoraUse {
    on: bool,
    record: u32,
    scale: f32,
}

fn lora_use(m: u32) -> LoraUse {
    let slot = lora_slots[step_rows[m].z];
    let record = (max(slot.x, 1u) - 1u) * LORA_RECORD;
    return LoraUse(slot.x > 0u && lora_records[record].y > 0u, record, bitcast<f32>(slot.y));
}

fn lora_first(used: LoraUse) -> u32 {
    return lora_records[used.record].x;
}

fn lora_ranks(used: LoraUse) -> u32 {
    return select(0u, lora_records[used.record].y, used.on);
}

fn lora_up_first(used: LoraUse) -> u32 {
    return lora_records[used.record].z;
}

fn lora_part(used: LoraUse, i: u32) -> vec4<u32> {
    return lora_records[used.record + 1u + i];
}
