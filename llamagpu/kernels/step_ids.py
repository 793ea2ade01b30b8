"""Token ids from a tensor on the GPU enter a step's rows; ids that are not in the vocabulary void what follows them.

The host cannot refuse an id that it never sees. So ``step_ids`` notes the position of the first bad id, and
``void_rows`` turns the rows from there on into NaN.
"""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Part, Program, Tensor
from llamagpu.kernels.arguments import owner, parts, require, require_floats, require_rows
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel, Outputs
from llamagpu.kernels.step import NO_END
from llamagpu.kernels.step import step_rows as make_rows

_DUMP = 2  # the slot of padding rows in the cases


def step_ids(ids: Tensor, rows: Tensor, broken: Tensor, vocab: int, dump: int) -> None:
    """The token of every row that is no padding becomes its id.

    Args:
        ids: u32 [1, at least rows].
        rows: u32 [rows, 4], the step's state.
        broken: u32 [1, 4]; its first word becomes the position of the first id that is not below ``vocab``, if that is
            lower. The row of such an id gets token 0.
        dump: the slot of padding rows.
    """
    device = owner("step_ids", ids=ids, rows=rows, broken=broken)
    require_rows("step_ids", rows)
    require_rows("step_ids", broken)
    enough = ids.dtype == "u32" and ids.rows == 1 and ids.columns >= rows.rows
    require(enough, f"step_ids: ids must be u32 [1, {rows.rows}], not {ids!r}")
    sizes = {"rows": rows.rows, "vocab": vocab, "dump": dump}
    windows = {"ids": ids, "step_rows": rows, "broken": broken}
    device.dispatch(Program("step_ids"), -(-rows.rows // 64), sizes, parts(**windows))


def void_rows(x: Tensor, rows: Tensor, broken: Tensor) -> None:
    """Rows of x whose position is ``broken`` or later become NaN.

    Args:
        x: f32 [rows, columns].
        rows: u32 [rows, 4], the step's state.
        broken: u32 [1, 4], see ``step_ids``.
    """
    device = require_floats("void_rows", x=x)
    owner("void_rows", x=x, rows=rows, broken=broken)
    require_rows("void_rows", rows)
    require_rows("void_rows", broken)
    require(x.rows == rows.rows, f"void_rows: {x!r} must have {rows.rows} rows")
    sizes = {"rows": x.rows, "columns": x.columns, "stride": x.stride}
    groups = x.rows * -(-x.columns // 256)
    device.dispatch(Program("void_rows"), groups, sizes, parts(step_rows=rows, broken=broken, x=x))


# --- registry ----------------------------------------------------------------------------------


def _rows(rng: np.random.Generator, count: int) -> Arrays:
    return {"rows": make_rows([7] * count, np.arange(count) + 5, rng.integers(0, _DUMP + 1, count))}


def _ids_inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    ids = rng.integers(0, d["vocab"], (d["rows"],)).astype(np.uint32)
    ids[3::7] = d["vocab"]
    return {"ids": ids} | _rows(rng, d["rows"])


def _run_ids(bench: Bench, a: Arrays, d: Dims) -> Outputs:
    rows, broken = bench.change(a["rows"]), bench.change(make_rows([NO_END], 0))
    step_ids(bench.put(a["ids"].reshape(1, -1)), rows, broken, d["vocab"], _DUMP)
    return {"rows": rows, "broken": broken}


def _ids_reference(a: Arrays, d: Dims) -> dict[str, Expected]:
    """The state with the ids, and the position of the first bad id."""
    rows, ids = a["rows"].astype(np.float64), a["ids"].astype(np.float64)
    taken, good = rows[:, 2] != _DUMP, ids < d["vocab"]
    rows[:, 0] = np.where(taken, np.where(good, ids, 0), rows[:, 0])
    bad = rows[taken & ~good, 1]
    broken = np.array([[bad.min() if bad.size else NO_END, 0, 0, 0]], np.float64)
    return {"rows": Expected(rows, np.zeros_like(rows)), "broken": Expected(broken, np.zeros_like(broken))}


def _run_void(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    x = bench.change(a["x"])
    void_rows(x, bench.put(a["rows"]), bench.put(make_rows([d["broken"]], 0)))
    out = bench.out(x.shape, "u32")  # as bits: NaN equals nothing
    bench.device.memory.copy(_without_guard(x), _without_guard(out))
    return out


def _without_guard(tensor: Tensor) -> Part:
    part = tensor.part
    return Part(part.buffer, part.offset, part.size - part.tail, 0, part.rows)


def _void_reference(a: Arrays, d: Dims) -> Expected:
    """The bits of x, with one NaN's bits in the voided rows."""
    voided = a["rows"][:, 1:2] >= d["broken"]
    bits = np.where(voided, np.uint32(0x7FC00000), a["x"].view(np.uint32)).astype(np.float64)
    return Expected(bits, np.zeros_like(bits))


def _case(rows: int, vocab: int) -> Dims:
    return {"rows": rows, "vocab": vocab}


def _random_ids(rng: np.random.Generator) -> Dims:
    return _case(int(rng.integers(1, 999)), int(rng.integers(1, 50000)))


def _random_void(rng: np.random.Generator) -> Dims:
    rows = int(rng.integers(1, 99))
    return {"rows": rows, "columns": int(rng.integers(1, 900)), "broken": int(rng.integers(4, rows + 6))}


STEP_IDS = Kernel(
    "step_ids",
    _ids_inputs,
    _run_ids,
    _ids_reference,
    cases=(
        _case(1, 1),
        _case(97, 2048),
        _case(3, 9),
        _case(512, 128256),
        _case(4194320, 49152),
    ),
    random=_random_ids,
    tolerance=0.0,
)
VOID_ROWS = Kernel(
    "void_rows",
    lambda rng, d: {"x": rng.standard_normal((d["rows"], d["columns"]), np.float32)} | _rows(rng, d["rows"]),
    _run_void,
    _void_reference,
    cases=(
        {"rows": 1, "columns": 1, "broken": NO_END},
        {"rows": 1, "columns": 1, "broken": 0},
        {"rows": 33, "columns": 97, "broken": 17},
        {"rows": 512, "columns": 576, "broken": 500},
        {"rows": 65541, "columns": 3, "broken": 9},
    ),
    random=_random_void,
    tolerance=0.0,
)
