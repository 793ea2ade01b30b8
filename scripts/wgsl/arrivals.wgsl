// Do workgroups see each other's results within a dispatch? For bench_gpu alone.
// The workgroups of a block each write a partial result, then count their arrival; the last one to arrive adds up all
// partials of the block in order. Nobody waits for anybody. First, every workgroup reads the partials of the round
// before, so that its core's cache holds old values.
// Entry points: plain (partials by plain stores and loads) and atomic_cells (by atomic ones). Without FENCED, plain has no
// storage barriers: a control that shows whether the check can fail on this GPU.
// Grid: blocks · ARRIVALS workgroups of 64; neighbours belong to different blocks.
//! const ARRIVALS
override FENCED: u32 = 1u;
struct Params {
    blocks: u32,
    round: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> arrived: array<atomic<u32>>;     // [blocks], 0 before and after
@group(0) @binding(2) var<storage, read_write> partials: array<u32>;            // [blocks, ARRIVALS, 64] bits of f32
@group(0) @binding(3) var<storage, read_write> cells: array<atomic<u32>>;       // the same, for atomic_cells
@group(0) @binding(4) var<storage, read_write> out: array<f32>;                 // [blocks, 64]
var<workgroup> count: u32;

// From -1 to 1, by PCG's output function (O'Neill 2014), as noise.wgsl has it.
fn value(place: u32) -> f32 {
    let state = (place ^ (params.round * 0x9e3779b9u)) * 747796405u + 2891336453u;
    let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
    return f32(((word >> 22u) ^ word) & 0xffffu) / 32768.0 - 1.0;
}

// Counts the workgroup's arrival. Whether it is the last one of its block.
fn arrives_last(block: u32, local: u32) -> bool {
    workgroupBarrier();
    if (local == 0u) {
        count = atomicAdd(&arrived[block], 1u);
    }
    return workgroupUniformLoad(&count) == ARRIVALS - 1u;
}

@compute @workgroup_size(64)
fn plain(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let block = id.x % params.blocks;
    let base = block * ARRIVALS * 64u + local;
    var old = 0u;
    for (var i = 0u; i < ARRIVALS; i++) {
        old |= partials[base + i * 64u];
    }
    let mine = base + id.x / params.blocks * 64u;
    partials[mine] = select(bitcast<u32>(value(mine)), 0u, old == 0xffffffffu);     // never: keeps the loads
    if (FENCED == 1u) {
        storageBarrier();
    }
    if (!arrives_last(block, local)) {
        return;
    }
    if (FENCED == 1u) {
        storageBarrier();
    }
    var sum = 0.0;
    for (var i = 0u; i < ARRIVALS; i++) {
        sum += bitcast<f32>(partials[base + i * 64u]);
    }
    out[block * 64u + local] = sum;
    if (local == 0u) {
        atomicStore(&arrived[block], 0u);
    }
}

@compute @workgroup_size(64)
fn atomic_cells(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let block = id.x % params.blocks;
    let base = block * ARRIVALS * 64u + local;
    var old = 0u;
    for (var i = 0u; i < ARRIVALS; i++) {
        old |= atomicLoad(&cells[base + i * 64u]);
    }
    let mine = base + id.x / params.blocks * 64u;
    atomicStore(&cells[mine], select(bitcast<u32>(value(mine)), 0u, old == 0xffffffffu));
    storageBarrier();
    if (!arrives_last(block, local)) {
        return;
    }
    storageBarrier();
    var sum = 0.0;
    for (var i = 0u; i < ARRIVALS; i++) {
        sum += bitcast<f32>(atomicLoad(&cells[base + i * 64u]));
    }
    out[block * 64u + local] = sum;
    if (local == 0u) {
        atomicStore(&arrived[block], 0u);
    }
}
