"""The beginning of a step: rows of the embedding become the residual stream, ready for the first norm."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import owner, require, require_floats, require_rows, weight_parts, weights_libs
from llamagpu.kernels.dequantize import FORMATS, columns_for, put_weights, weight_inputs
from llamagpu.kernels.dequantize import reference as weight_reference
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel, Outputs
from llamagpu.kernels.kv_write import PAGE, address
from llamagpu.kernels.prenorm import NextNorm, next_norm, prenorm_columns, prenorm_reference
from llamagpu.kernels.step import step_rows as make_rows


def begin_step(
    table: Tensor,
    rows: Tensor,
    pages: Tensor,
    out: Tensor,
    *,
    following: NextNorm | None = None,
    factor: float = 1.0,
) -> None:
    """``out[r] = factor · table[token(r)]``, the prenorm buffer of the first norm, and each row's place in the cache.

    Args:
        table: [vocab, columns], f32, f16, bf16 or affine; may have several parts.
        rows: u32 [rows, 4], the step's state; its last column gets page · PAGE + position % PAGE.
        pages: u32 [slots, pages of a sequence], the page table.
        out: f32 [rows, columns].
        following: the norm that reads out next; None prepares nothing.
    """
    device = owner("begin_step", table=table, rows=rows, pages=pages)
    require_rows("begin_step", rows)
    require_floats("begin_step", out=out)
    require(out.shape == (rows.rows, table.columns), "begin_step: out must be [rows, columns]")
    libs, consts = weights_libs(table)
    prepared, more = next_norm("begin_step", following, rows.rows, table.columns)
    program = Program("begin_step", (*libs, *prepared), (*consts, ("PAGE", PAGE)))
    windows = {"step_rows": rows, "pages": pages, "out": out} | more
    for part, bindings in weight_parts(table):
        params = {"rows": rows.rows, "columns": table.columns, "stride4": table.stride // 4}
        device.dispatch(
            program,
            rows.rows * -(-table.columns // 256),
            params | {"first": part.first, "count": part.rows, "table": pages.stride, "factor": factor},
            {name: t.part for name, t in windows.items()} | bindings,
        )


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    columns = columns_for(d["columns"], d["format"])
    pages = rng.permutation(3 * 9).astype(np.uint32).reshape(3, 9)
    rows = make_rows(
        rng.integers(0, d["vocab"], d["rows"]), rng.integers(0, 9 * PAGE, d["rows"]), rng.integers(0, 3, d["rows"])
    )
    more = {"rows": rows, "pages": pages, "weight": rng.standard_normal(columns).astype(np.float32)}
    return weight_inputs(rng, d["vocab"], columns, d["format"]) | more


def _run(bench: Bench, a: Arrays, d: Dims) -> Outputs:
    columns = len(a["weight"])
    found = {
        "rows": bench.change(a["rows"], "u32"),
        "out": bench.out((d["rows"], columns)),
    }
    if d["norm"]:
        found["prenorm"] = bench.out((d["rows"], prenorm_columns(columns)))
    table, pages = put_weights(bench, a, d), bench.put(a["pages"], "u32")
    following = NextNorm(found["prenorm"], bench.put(a["weight"])) if d["norm"] else None
    begin_step(table, found["rows"], pages, found["out"], following=following, factor=d["factor"])
    return found


def reference(a: Arrays, d: Dims) -> dict[str, Expected]:
    """The rows' state, the rows of the table, and the prenorm buffer, if the case has one."""
    whole = weight_reference(a, d)
    x, size = (
        values[a["rows"][:, 0].astype(np.int64)] * np.float32(d["factor"]) for values in (whole.value, whole.scale)
    )
    size = size + (0 if d["factor"] == 1 else np.abs(x))
    page, place = address(a["pages"], a["rows"])
    rows = a["rows"].astype(np.float64)
    rows[:, 3] = page * PAGE + place
    out = {"rows": Expected(rows, np.zeros_like(rows)), "out": Expected(x, size)}
    if d["norm"]:
        weight = a["weight"].astype(np.float64)
        out["prenorm"] = Expected(prenorm_reference(x, weight), prenorm_reference(size, np.abs(weight)))
    return out


def _case(
    vocab: int, columns: int, rows: int, format: str, norm: bool = True, factor: float = 1.0, cut: bool = False
) -> Dims:
    sizes = {"vocab": vocab, "columns": columns, "rows": rows, "format": format}
    return sizes | {"norm": norm, "factor": factor, "cut": cut}


def _random(rng: np.random.Generator) -> Dims:
    return _case(
        int(rng.integers(1, 999)),
        int(rng.integers(1, 700)),
        int(rng.integers(1, 40)),
        FORMATS[rng.integers(len(FORMATS))],
        bool(rng.integers(3)),
        (1.0, 25.298)[rng.integers(2)],
    )


KERNEL = Kernel(
    "begin_step",
    _inputs,
    _run,
    reference,
    cases=(
        _case(1, 1, 1, "f32"),
        _case(105, 97, 3, "f16"),
        _case(49152, 576, 8, "bf16"),
        _case(333, 128, 31, "int4-g64-f16", norm=False, factor=11.3),
        _case(131, 97, 9, "f16", factor=0.7, cut=True),
        _case(9, 257, 3, "f32"),
        _case(7, 3, 70001, "f32"),
    ),
    random=_random,
)
