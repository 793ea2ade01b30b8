"""The beginning of a step: rows of the embedding become the residual stream, ready for the first norm."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import owner, require, require_floats, require_rows, weight_parts, weights_libs
from llamagpu.kernels.dequantize import FORMATS, columns_for, put_weights, weight_inputs
from llamagpu.kernels.dequantize import reference as weight_reference
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel
from llamagpu.kernels.kv_write import PAGE, address
from llamagpu.kernels.prenorm import prenorm_columns, prenorm_reference
from llamagpu.kernels.step import step_rows as make_rows


def begin_step(table: Tensor, rows: Tensor, pages: Tensor, weight: Tensor, out: Tensor, prenorm: Tensor) -> None:
    """``out[r] = table[token(r)]``, the prenorm buffer of the first norm, and each row's place in the cache.

    Args:
        table: [vocab, columns], f32, f16, bf16 or affine; may have several parts.
        rows: u32 [rows, 4], the step's state; its last column gets page · PAGE + position % PAGE.
        pages: u32 [slots, pages of a sequence], the page table.
        weight: f32 [columns], of the first norm.
        out: f32 [rows, columns].
        prenorm: f32 [rows, prenorm_columns(columns)].
    """
    device = owner("begin_step", table=table, rows=rows, pages=pages)
    require_rows("begin_step", rows)
    require_floats("begin_step", weight=weight, out=out, prenorm=prenorm)
    require(out.shape == (rows.rows, table.columns), "begin_step: out must be [rows, columns]")
    require(prenorm.shape == (rows.rows, prenorm_columns(table.columns)), "begin_step: prenorm has a wrong shape")
    require(weight.columns == table.columns, "begin_step: one weight for every column")
    libs, consts = weights_libs(table)
    program = Program("begin_step", libs, (*consts, ("PAGE", PAGE)))
    windows = {"step_rows": rows, "pages": pages, "norm_weight": weight, "out": out, "prenorm": prenorm}
    for part, bindings in weight_parts(table):
        params = {"rows": rows.rows, "columns": table.columns, "stride4": table.stride // 4}
        device.dispatch(
            program,
            rows.rows * -(-table.columns // 256),
            params | {"first": part.first, "count": part.rows, "table": pages.stride},
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


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    columns = len(a["weight"])
    found = {
        "rows": bench.put(a["rows"], "u32"),
        "out": bench.out((d["rows"], columns)),
        "prenorm": bench.out((d["rows"], prenorm_columns(columns))),
    }
    table, pages = put_weights(bench, a, d["format"]), bench.put(a["pages"], "u32")
    begin_step(table, found["rows"], pages, bench.put(a["weight"]), found["out"], found["prenorm"])
    return found[d["which"]]


def reference(a: Arrays, d: Dims) -> Expected:
    """The rows' state, the rows of the table, or the prenorm buffer, as the case asks."""
    whole = weight_reference(a, d)
    x, size = (values[a["rows"][:, 0].astype(np.int64)] for values in (whole.value, whole.scale))
    if d["which"] == "out":
        return Expected(x, size)
    if d["which"] == "prenorm":
        weight = a["weight"].astype(np.float64)
        return Expected(prenorm_reference(x, weight), prenorm_reference(size, np.abs(weight)))
    page, place = address(a["pages"], a["rows"])
    rows = a["rows"].astype(np.float64)
    rows[:, 3] = page * PAGE + place
    return Expected(rows, np.zeros_like(rows))


def _random(rng: np.random.Generator) -> Dims:
    sizes = {"vocab": int(rng.integers(1, 999)), "columns": int(rng.integers(1, 700)), "rows": int(rng.integers(1, 40))}
    return sizes | {"format": FORMATS[rng.integers(len(FORMATS))], "which": ("out", "prenorm", "rows")[rng.integers(3)]}


KERNEL = Kernel(
    "begin_step",
    _inputs,
    _run,
    reference,
    cases=(
        {"vocab": 1, "columns": 1, "rows": 1, "format": "f32", "which": "prenorm"},
        {"vocab": 105, "columns": 97, "rows": 3, "format": "f16", "which": "prenorm"},
        {"vocab": 49152, "columns": 576, "rows": 8, "format": "bf16", "which": "prenorm"},
        {"vocab": 333, "columns": 128, "rows": 31, "format": "int4-g64-f16", "which": "out"},
        {"vocab": 7, "columns": 3, "rows": 70000, "format": "f32", "which": "rows"},
    ),
    random=_random,
)
