"""GELU, exact (by a polynomial erf) and in its tanh form."""

from __future__ import annotations

import math

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import parts, require, require_floats
from llamagpu.kernels.entry import Arrays, Dims, Expected, Kernel

_ERF = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: Tensor, out: Tensor | None = None, *, tanh: bool = False) -> Tensor:
    """``out = x/2 · (1 + erf(x/√2))``, or its tanh form (arXiv:1606.08415); f32, any shape.

    erf is a polynomial with an error of at most 1.5e-7 (Abramowitz and Stegun 7.1.26), so that the error of the result
    beyond rounding is at most 7.5e-8 · |x|.
    """
    device = require_floats("gelu", x=x, out=out)
    out = out or device.empty(x.shape)
    require(out.shape == x.shape, "gelu: out must have the shape of x")
    count = x.rows * x.stride
    program = Program("gelu", overrides=(("TANH", int(tanh)),))
    device.dispatch(program, -(-count // 64), {"count": count}, parts(x=x, out=out))
    return out


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    x = rng.standard_normal((d["rows"], d["columns"])) * 3
    x.flat[::41] *= 20
    return {"x": x.astype(np.float32)}


def reference(a: Arrays, d: Dims) -> Expected:
    """GELU in float64, on the scale |x|."""
    x = a["x"].astype(np.float64)
    gate = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)) if d["tanh"] else _ERF(x / np.sqrt(2))
    return Expected(0.5 * x * (1 + gate), np.abs(x))


KERNEL = Kernel(
    "gelu",
    _inputs,
    lambda bench, a, d: gelu(bench.put(a["x"]), bench.out(a["x"].shape), tanh=d["tanh"]),
    reference,
    cases=(
        {"rows": 1, "columns": 1, "tanh": False},
        {"rows": 3, "columns": 97, "tanh": True},
        {"rows": 31, "columns": 3072, "tanh": False},
        {"rows": 31, "columns": 3072, "tanh": True},
        {"rows": 3, "columns": 1400067, "tanh": True},
    ),
    random=lambda rng: {
        "rows": int(rng.integers(1, 50)),
        "columns": int(rng.integers(1, 2000)),
        "tanh": bool(rng.integers(2)),
    },
)
