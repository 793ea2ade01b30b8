"""Embedding look-up: one row of the table for every row of the step."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.base import FORMATS, Arrays, Bench, Dims, Expected, Kernel, as_stored, require, weights_lib
from llamagpu.kernels.base import step_rows as make_rows


def embedding(table: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
    """``out[r] = table[token(r)]`` as float32.

    Args:
        table: [vocab, columns], f32, f16 or bf16; may have several parts.
        rows: u32 [rows, 4], the step's state; the token is the first.
        out: f32 [rows, columns].
    """
    device, count = table.device, rows.rows
    out = out or device.empty((count, table.columns))
    require(out.shape == (count, table.columns), "embedding: out must be [rows, columns]")
    program = Program("embedding", (weights_lib(table),))
    columns4 = -(-table.columns // 4)
    for part in table.parts:
        device.dispatch(
            program,
            count * -(-columns4 // 64),
            {
                "rows": count,
                "columns4": columns4,
                "stride4": table.stride // 4,
                "first": part.first,
                "count": part.rows,
            },
            {"step_rows": rows.part, "out": out.part, "weights_data": part},
        )
    return out


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    table = as_stored(rng.standard_normal((d["vocab"], d["columns"])), d["format"])
    return {"table": table, "rows": make_rows(rng.integers(0, d["vocab"], d["rows"]), 0)}


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    out = bench.out((d["rows"], d["columns"]))
    return embedding(bench.put(a["table"], d["format"]), bench.put(a["rows"], "u32"), out)


def reference(a: Arrays, d: Dims) -> Expected:
    """Rows of the table, exactly."""
    value = a["table"][a["rows"][:, 0].astype(np.int64)].astype(np.float64)
    return Expected(value, np.abs(value))


def _random(rng: np.random.Generator) -> Dims:
    sizes = {
        "vocab": int(rng.integers(1, 3000)),
        "columns": int(rng.integers(1, 700)),
        "rows": int(rng.integers(1, 40)),
    }
    return sizes | {"format": FORMATS[rng.integers(3)]}


KERNEL = Kernel(
    "embedding",
    _inputs,
    _run,
    reference,
    cases=(
        {"vocab": 1, "columns": 1, "rows": 1, "format": "f32"},
        {"vocab": 105, "columns": 97, "rows": 3, "format": "f16"},
        {"vocab": 105, "columns": 333, "rows": 31, "format": "bf16"},
        {"vocab": 2048, "columns": 128, "rows": 512, "format": "bf16"},
        {"vocab": 49152, "columns": 576, "rows": 8, "format": "f16"},
        {"vocab": 7, "columns": 3, "rows": 70000, "format": "f32"},
    ),
    random=_random,
    tolerance=0.0,
    depends=("f16",),
)
