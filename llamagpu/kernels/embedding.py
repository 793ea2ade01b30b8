"""Embedding look-up: one row of the table for every row of the step."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import owner, require, require_floats, require_rows, weight_parts, weights_libs
from llamagpu.kernels.dequantize import FORMATS, columns_for, put_weights, weight_inputs
from llamagpu.kernels.dequantize import reference as weight_reference
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel
from llamagpu.kernels.step import step_rows as make_rows


def embedding(table: Tensor, rows: Tensor, out: Tensor | None = None, factor: float = 1.0) -> Tensor:
    """``out[r] = factor · table[token(r)]`` as float32.

    Args:
        table: [vocab, columns], f32, f16, bf16 or affine; may have several parts.
        rows: u32 [rows, 4], the step's state; the token is the first.
        out: f32 [rows, columns].
    """
    device = owner("embedding", table=table, rows=rows, out=out)
    require_rows("embedding", rows)
    require(table.dtype != "u32", f"embedding: {table!r} does not hold weights")
    count = rows.rows
    out = out or device.empty((count, table.columns))
    require_floats("embedding", out=out)
    require(out.shape == (count, table.columns), "embedding: out must be [rows, columns]")
    libs, consts = weights_libs(table)
    program = Program("embedding", libs, consts)
    columns4 = -(-table.columns // 4)
    for part, bindings in weight_parts(table):
        device.dispatch(
            program,
            count * -(-columns4 // 64),
            {
                "rows": count,
                "columns4": columns4,
                "stride4": table.stride // 4,
                "first": part.first,
                "count": part.rows,
                "factor": factor,
            },
            {"step_rows": rows.part, "out": out.part} | bindings,
        )
    return out


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    weights = weight_inputs(rng, d["vocab"], columns_for(d["columns"], d["format"]), d["format"])
    return weights | {"rows": make_rows(rng.integers(0, d["vocab"], d["rows"]), 0)}


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    out = bench.out((d["rows"], a["w"].shape[1]))
    return embedding(put_weights(bench, a, d), bench.put(a["rows"], "u32"), out, d["factor"])


def reference(a: Arrays, d: Dims) -> Expected:
    """Rows of the table as stored, times a factor; without one, floats come out exactly, see
    ``test_bf16_and_f16_are_read_exactly``."""
    rows, whole, factor = a["rows"][:, 0].astype(np.int64), weight_reference(a, d), np.float64(np.float32(d["factor"]))
    return Expected(factor * whole.value[rows], abs(factor) * whole.scale[rows])


def _random(rng: np.random.Generator) -> Dims:
    sizes = {
        "vocab": int(rng.integers(1, 3000)),
        "columns": int(rng.integers(1, 700)),
        "rows": int(rng.integers(1, 40)),
        "factor": (1.0, 25.298)[rng.integers(2)],
    }
    return sizes | {"format": FORMATS[rng.integers(len(FORMATS))]}


KERNEL = Kernel(
    "embedding",
    _inputs,
    _run,
    reference,
    cases=(
        {"vocab": 1, "columns": 1, "rows": 1, "format": "f32", "factor": 1.0},
        {"vocab": 105, "columns": 97, "rows": 3, "format": "f16", "factor": 1.0},
        {"vocab": 105, "columns": 333, "rows": 31, "format": "bf16", "factor": -0.7},
        {"vocab": 2048, "columns": 128, "rows": 512, "format": "bf16", "factor": 1.0},
        {"vocab": 49152, "columns": 576, "rows": 8, "format": "f16", "factor": 12.0},
        {"vocab": 333, "columns": 128, "rows": 5, "format": "int4-g64-f16", "factor": 1.0},
        {"vocab": 9, "columns": 257, "rows": 3, "format": "f32", "factor": 1.0},
        {"vocab": 131, "columns": 97, "rows": 9, "format": "bf16", "factor": 3.5, "cut": True},
        {"vocab": 7, "columns": 3, "rows": 70001, "format": "f32", "factor": 1.0},
    ),
    random=_random,
    tolerance=1e-6,
)
