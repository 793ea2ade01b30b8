"""Rotary position embedding, in place."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import parts, require, require_floats, require_rows
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel
from llamagpu.kernels.step import step_rows as make_rows


def rope(x: Tensor, rows: Tensor, cos_sin: Tensor, heads: int, *, interleaved: bool = True) -> Tensor:
    """Rotate the first ``heads`` heads of every row by the angles of the row's position (arXiv:2104.09864).

    Args:
        x: f32 [rows, at least heads · head_dim], changed in place.
        rows: u32 [rows, 4], the step's state; the position is the second.
        cos_sin: f32 [positions, head_dim], cosine and sine of each pair side by side.
        interleaved: pairs are neighbours (2i, 2i + 1), as Meta's checkpoints have them; otherwise (i, i + head_dim/2).
    """
    device = require_floats("rope", x=x, cos_sin=cos_sin)
    require_rows("rope", rows)
    half = cos_sin.columns // 2
    require(cos_sin.columns % 4 == 0, "rope: head_dim must be a multiple of 4")
    require(heads * 2 * half <= x.columns, "rope: x has fewer columns than heads · head_dim")
    device.dispatch(
        Program("rope", overrides=(("INTERLEAVED", int(interleaved)),)),
        -(-x.rows * heads * half // 64),
        {"rows": x.rows, "heads": heads, "half": half, "stride": x.stride},
        parts(step_rows=rows, cos_sin=cos_sin, x=x),
    )
    return x


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    positions = rng.integers(0, d["positions"], d["rows"])
    angle = np.arange(d["positions"])[:, None] * 10000.0 ** (-np.arange(d["head"] // 2) / (d["head"] // 2))
    cos_sin = np.stack([np.cos(angle), np.sin(angle)], axis=-1).reshape(d["positions"], d["head"])
    x = rng.standard_normal((d["rows"], d["heads"] * d["head"] + d["rest"]))
    return {
        "x": x.astype(np.float32),
        "cos_sin": cos_sin.astype(np.float32),
        "rows": make_rows([0] * d["rows"], positions),
    }


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    rows = bench.put(a["rows"], "u32")
    return rope(bench.change(a["x"]), rows, bench.put(a["cos_sin"]), d["heads"], interleaved=d["interleaved"])


def reference(a: Arrays, d: Dims) -> Expected:
    """The rotated heads in float64, on the scale |a · cos| + |b · sin|; other columns unchanged."""
    x, half = a["x"].astype(np.float64), d["head"] // 2
    value, scale = x.copy(), np.abs(x)
    heads = x[:, : d["heads"] * d["head"]].reshape(d["rows"], d["heads"], d["head"])
    rotation = a["cos_sin"].astype(np.float64)[a["rows"][:, 1]].reshape(d["rows"], 1, half, 2)
    first, second = (slice(0, None, 2), slice(1, None, 2)) if d["interleaved"] else (slice(0, half), slice(half, None))
    p, q = heads[..., first], heads[..., second]
    out, size = np.empty_like(heads), np.empty_like(heads)
    out[..., first], out[..., second] = (
        p * rotation[..., 0] - q * rotation[..., 1],
        q * rotation[..., 0] + p * rotation[..., 1],
    )
    cos, sin = np.abs(rotation[..., 0]), np.abs(rotation[..., 1])
    size[..., first], size[..., second] = abs(p) * cos + abs(q) * sin, abs(q) * cos + abs(p) * sin
    value[:, : d["heads"] * d["head"]] = out.reshape(d["rows"], -1)
    scale[:, : d["heads"] * d["head"]] = size.reshape(d["rows"], -1)
    return Expected(value, scale)


def _random(rng: np.random.Generator) -> Dims:
    return {
        "rows": int(rng.integers(1, 40)),
        "heads": int(rng.integers(1, 12)),
        "head": 4 * int(rng.integers(1, 33)),
        "rest": int(rng.integers(0, 70)),
        "positions": int(rng.integers(1, 600)),
        "interleaved": bool(rng.integers(2)),
    }


KERNEL = Kernel(
    "rope",
    _inputs,
    _run,
    reference,
    cases=(
        {"rows": 1, "heads": 1, "head": 4, "rest": 0, "positions": 1, "interleaved": True},
        {"rows": 1, "heads": 12, "head": 64, "rest": 192, "positions": 2048, "interleaved": True},
        {"rows": 31, "heads": 3, "head": 80, "rest": 5, "positions": 600, "interleaved": False},
        {"rows": 7, "heads": 40, "head": 128, "rest": 0, "positions": 4096, "interleaved": True},
        {"rows": 2, "heads": 9, "head": 16, "rest": 1, "positions": 64, "interleaved": False},
        {"rows": 70001, "heads": 8, "head": 16, "rest": 0, "positions": 9, "interleaved": True},
    ),
    random=_random,
)
