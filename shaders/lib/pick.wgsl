//! const WIDTH
// The best token of a row, found by a workgroup of WIDTH invocations: the highest value, among equal ones the lowest id.
// pick_better(a, b): the better one, with the flags of both. pick(local, own): the best of the invocations' candidates; only
// invocation 0 gets it.
const PICKERS = max(1u, WIDTH / 16u);   // invocations that reduce the candidates of all
struct Candidate {
    value: f32,
    id: u32,
    flag: u32,      // 1 if a score is not finite
}
const PICK_NONE = Candidate(-3.4028234e38, 0xffffffffu, 0u);
var<workgroup> pick_held: array<Candidate, WIDTH>;

fn pick_better(a: Candidate, b: Candidate) -> Candidate {
    let wins = b.value > a.value || (b.value == a.value && b.id < a.id);
    return Candidate(select(a.value, b.value, wins), select(a.id, b.id, wins), a.flag | b.flag);
}

// The best of candidates first, first + stride, … (`count` of them).
fn pick_of(first: u32, count: u32, stride: u32) -> Candidate {
    var top = pick_held[first];
    for (var i = 1u; i < count; i++) {
        top = pick_better(top, pick_held[first + i * stride]);
    }
    return top;
}

fn pick(local: u32, own: Candidate) -> Candidate {
    pick_held[local] = own;
    workgroupBarrier();
    if (local < PICKERS) {
        pick_held[local] = pick_of(local, WIDTH / PICKERS, PICKERS);
    }
    workgroupBarrier();
    return pick_of(0u, PICKERS, 1u);
}
