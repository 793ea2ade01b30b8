"""Pooling of token vectors to one vector for each sequence."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import owner, parts, require, require_floats
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel

MODES = ("mean", "cls", "max", "last", "weightedmean", "mean_sqrt_len")  # MODE of the shader, as sentence-transformers


def pool(x: Tensor, sequences: Tensor, mode: str, out: Tensor) -> Tensor:
    """One vector for each sequence from its rows: their mean, first row, maximum, last row, mean with weights 1, 2, 3,
    …, or sum over the square root of their number, as sentence-transformers' Pooling has it.

    Args:
        x: f32 [rows, columns].
        sequences: u32 [count, 2], first row and number of rows of each sequence.
        out: f32 [count, columns].
    """
    device = owner("pool", x=x, sequences=sequences, out=out)
    require_floats("pool", x=x, out=out)
    require(mode in MODES, f"pool: the mode is one of {', '.join(MODES)}, not {mode!r}")
    require(sequences.dtype == "u32" and sequences.columns == 2, "pool: sequences must be u32 [count, 2]")
    require(out.shape == (sequences.rows, x.columns), "pool: out must be [count, columns]")
    device.dispatch(
        Program("pool", consts=(("MODE", MODES.index(mode)),)),
        sequences.rows * -(-x.stride // 256),
        {"count": sequences.rows, "columns4": x.stride // 4},
        parts(x=x, out=out) | {"sequences": sequences.part},
    )
    return out


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    counts = rng.integers(1, d["longest"] + 1, d["count"])
    first = np.concatenate([[0], counts.cumsum()])
    x = rng.standard_normal((int(first[-1]), d["columns"])).astype(np.float32)
    return {"x": x, "sequences": np.stack([first[:-1], counts], axis=1).astype(np.uint32)}


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    sequences, out = bench.put(a["sequences"], "u32"), bench.out((d["count"], d["columns"]))
    return pool(bench.put(a["x"]), sequences, d["mode"], out)


def reference(a: Arrays, d: Dims) -> Expected:
    """The pooled vectors in float64, on the scale of the pooled absolute values; single rows and maxima are copies."""
    value, scale = np.empty((d["count"], d["columns"])), np.zeros((d["count"], d["columns"]))
    for s, (first, rows) in enumerate(a["sequences"].astype(np.int64)):
        x = a["x"][first : first + rows].astype(np.float64)
        picked = {"cls": x[0], "last": x[-1], "max": x.max(axis=0)}
        if d["mode"] in picked:
            value[s] = picked[d["mode"]]
            continue
        weight = np.arange(1, rows + 1) if d["mode"] == "weightedmean" else np.ones(rows)
        total = rows**0.5 if d["mode"] == "mean_sqrt_len" else weight.sum()
        value[s], scale[s] = weight @ x / total, weight @ np.abs(x) / total
    return Expected(value, scale)


def _case(count: int, columns: int, longest: int, mode: str) -> Dims:
    return {"count": count, "columns": columns, "longest": longest, "mode": mode}


KERNEL = Kernel(
    "pool",
    _inputs,
    _run,
    reference,
    cases=(
        _case(1, 1, 1, "mean"),
        _case(7, 384, 40, "mean"),
        _case(3, 97, 9, "cls"),
        _case(5, 260, 20, "max"),
        _case(4, 1024, 5, "last"),
        _case(6, 33, 30, "weightedmean"),
        _case(2, 768, 100, "mean_sqrt_len"),
        _case(65539, 4, 2, "mean"),
    ),
    random=lambda rng: _case(
        int(rng.integers(1, 20)), int(rng.integers(1, 900)), int(rng.integers(1, 60)), MODES[rng.integers(6)]
    ),
)
