"""RMSNorm of rows."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import parts, require, require_floats, require_vectors
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel

WORKGROUP = 64


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """``out[r] = x[r] · weight / sqrt(mean(x[r]²) + eps)`` (arXiv:1910.07467).

    Args:
        x: f32 [..., columns].
        weight: f32 [columns].
        out: f32, as x; not the memory of x.
    """
    device = require_floats("rms_norm", x=x, weight=weight, out=out)
    out = out or device.empty(x.shape)
    require_vectors("rms_norm", x.columns, weight=weight)
    require(out.shape == x.shape, f"rms_norm: out must have the shape of {x!r}")
    device.dispatch(
        Program(
            "rms_norm", (("reduce", device.tuning.reduce), ("next", "none")), (("WORKGROUP", WORKGROUP), ("ADD", 0))
        ),
        x.rows,
        {"rows": x.rows, "columns": x.columns, "columns4": x.stride // 4, "eps": eps},
        parts(x=x, weight=weight, out=out),
        work=x.rows * x.columns,
    )
    return out


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    x = rng.standard_normal((d["rows"], d["columns"])).astype(np.float32) * np.float32(rng.uniform(0.01, 30))
    return {"x": x, "weight": rng.standard_normal((d["columns"],)).astype(np.float32)}


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    return rms_norm(bench.put(a["x"]), bench.put(a["weight"]), d["eps"], bench.out(a["x"].shape))


def reference(a: Arrays, d: Dims) -> Expected:
    """RMSNorm in float64, on the scale |y|."""
    x = a["x"].astype(np.float64)
    y = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(d["eps"])) * a["weight"]
    return Expected(y, np.abs(y))


def _random(rng: np.random.Generator) -> Dims:
    eps = (1e-5, 1e-6)[rng.integers(2)]
    return {"rows": int(rng.integers(1, 70)), "columns": int(rng.integers(1, 3000)), "eps": eps}


KERNEL = Kernel(
    "rms_norm",
    _inputs,
    _run,
    reference,
    cases=(
        {"rows": 1, "columns": 1, "eps": 1e-5},
        {"rows": 3, "columns": 97, "eps": 1e-6},
        {"rows": 1, "columns": 576, "eps": 1e-5},
        {"rows": 33, "columns": 2048, "eps": 1e-5},
        {"rows": 1, "columns": 8192, "eps": 1e-5},
        {"rows": 65539, "columns": 5, "eps": 1e-5},
    ),
    random=_random,
)
