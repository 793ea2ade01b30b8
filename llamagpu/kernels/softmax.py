"""Softmax of rows."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import parts, require, require_floats
from llamagpu.kernels.entry import Arrays, Dims, Expected, Kernel
from llamagpu.kernels.rms_norm import WORKGROUP


def softmax(x: Tensor, out: Tensor | None = None) -> Tensor:
    """``out[r] = e^(x[r] - max) / Σ e^(x[r] - max)``; x and out are f32 [..., columns]."""
    device = require_floats("softmax", x=x, out=out)
    out = out or device.empty(x.shape)
    require(out.shape == x.shape, "softmax: out must have the shape of x")
    device.dispatch(
        Program("softmax", (("reduce", device.tuning.reduce),), (("WORKGROUP", WORKGROUP),)),
        x.rows,
        {"rows": x.rows, "columns": x.columns, "stride": x.stride},
        parts(x=x, out=out),
        work=x.rows * x.columns,
    )
    return out


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    return {"x": (rng.standard_normal((d["rows"], d["columns"])) * d["spread"]).astype(np.float32)}


def reference(a: Arrays, d: Dims) -> Expected:
    """Softmax in float64. The scale grows with the exponent, as the error of e^v does (WGSL: 3 + 2|v| units)."""
    x = a["x"].astype(np.float64)
    shifted = x - x.max(axis=-1, keepdims=True)
    e = np.exp(shifted)
    value = e / e.sum(axis=-1, keepdims=True)
    return Expected(value, value * (1 + np.abs(shifted) / 8) + np.finfo(np.float32).tiny * 1e6)


KERNEL = Kernel(
    "softmax",
    _inputs,
    lambda bench, a, d: softmax(bench.put(a["x"]), bench.out(a["x"].shape)),
    reference,
    cases=(
        {"rows": 1, "columns": 1, "spread": 1.0},
        {"rows": 3, "columns": 105, "spread": 3.0},
        {"rows": 2, "columns": 50257, "spread": 5.0},
        {"rows": 31, "columns": 600, "spread": 30.0},
        {"rows": 65541, "columns": 3, "spread": 1.0},
    ),
    random=lambda rng: {"rows": int(rng.integers(1, 50)), "columns": int(rng.integers(1, 3000)), "spread": 4.0},
)
