"""The elementwise half of SwiGLU: silu(gate) · up, over interleaved columns."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import parts, require, require_floats
from llamagpu.kernels.entry import Arrays, Dims, Expected, Kernel


def silu_mul(x: Tensor, out: Tensor | None = None) -> Tensor:
    """``out[r, c] = silu(x[r, 2c]) · x[r, 2c + 1]``, silu(g) = g / (1 + e^-g) (arXiv:2002.05202).

    Args:
        x: f32 [rows, 2 · columns], gate and up side by side.
        out: f32 [rows, columns].
    """
    device = require_floats("silu_mul", x=x, out=out)
    columns = x.columns // 2
    out = out or device.empty((x.rows, columns))
    require(x.columns == 2 * columns and out.shape == (x.rows, columns), "silu_mul: x must be [rows, 2 · columns]")
    device.dispatch(
        Program("silu_mul"),
        -(-x.rows * columns // 64),
        {"rows": x.rows, "columns": columns, "in_stride2": x.stride // 2, "out_stride": out.stride},
        parts(x=x, out=out),
    )
    return out


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    x = rng.standard_normal((d["rows"], 2 * d["columns"])) * 4
    x.flat[::37] *= 30  # far tails: e^-g would overflow
    return {"x": x.astype(np.float32)}


def reference(a: Arrays, d: Dims) -> Expected:
    """silu(gate) · up in float64."""
    x = a["x"].astype(np.float64)
    gate, up = x[:, 0::2], x[:, 1::2]
    value = gate / (1 + np.exp(-gate)) * up
    # e^-|g| is accurate to about |g| units in the last place (WGSL: 3 + 2|g|).
    scale = np.abs(value) * (1 + np.abs(gate) / 8) + np.finfo(np.float32).tiny * np.abs(gate * up) * 1e6
    return Expected(value, scale)


KERNEL = Kernel(
    "silu_mul",
    _inputs,
    lambda bench, a, d: silu_mul(bench.put(a["x"]), bench.out((d["rows"], d["columns"]))),
    reference,
    cases=(
        {"rows": 1, "columns": 1},
        {"rows": 3, "columns": 97},
        {"rows": 1, "columns": 1536},
        {"rows": 31, "columns": 333},
        {"rows": 32, "columns": 8192},
        {"rows": 3, "columns": 1400003},
    ),
    random=lambda rng: {"rows": int(rng.integers(1, 50)), "columns": int(rng.integers(1, 2000))},
)
