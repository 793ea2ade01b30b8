"""Element-wise sum: the residual connection."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import parts, require, require_floats
from llamagpu.kernels.entry import Arrays, Dims, Expected, Kernel


def add(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """``out = a + b``, all f32 of one shape; out is not the memory of a or b."""
    device = require_floats("add", a=a, b=b, out=out)
    out = out or device.empty(a.shape)
    require(a.shape == b.shape == out.shape, "add: a, b and out must have one shape")
    count4 = a.rows * a.stride // 4
    device.dispatch(Program("add"), -(-count4 // 64), {"count4": count4}, parts(a=a, b=b, out=out))
    return out


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    shape = (d["rows"], d["columns"])
    return {name: rng.standard_normal(shape).astype(np.float32) for name in ("a", "b")}


def reference(a: Arrays, d: Dims) -> Expected:
    """a + b in float64, on the scale |a + b|."""
    value = a["a"].astype(np.float64) + a["b"]
    return Expected(value, np.abs(value))


KERNEL = Kernel(
    "add",
    _inputs,
    lambda bench, a, d: add(bench.put(a["a"]), bench.put(a["b"]), bench.out((d["rows"], d["columns"]))),
    reference,
    cases=(
        {"rows": 1, "columns": 1},
        {"rows": 3, "columns": 97},
        {"rows": 1, "columns": 576},
        {"rows": 31, "columns": 2048},
        {"rows": 65, "columns": 260000},
    ),
    random=lambda rng: {"rows": int(rng.integers(1, 50)), "columns": int(rng.integers(1, 2000))},
)
