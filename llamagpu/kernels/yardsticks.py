"""Yardsticks that benchmarks are compared with: copying memory, and multiply-adds in registers."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import parts, require, require_floats
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel

GROUP = 64  # invocations of a workgroup of multiply_add


def copy(x: Tensor, out: Tensor) -> Tensor:
    """``out = x``, f32 of one shape: bytes are read once and written once."""
    device = require_floats("copy", x=x, out=out)
    require(x.shape == out.shape, "copy: x and out must have one shape")
    count4 = x.rows * x.stride // 4
    device.dispatch(Program("copy"), -(-count4 // 256), {"count4": count4}, parts(x=x, out=out), reads=2 * x.nbytes)
    return out


def multiply_add(x: Tensor, out: Tensor, steps: int) -> Tensor:
    """Eight chains ``v = v · a + b`` of ``steps`` steps, from 0, 1/8, … 7/8, added up; no memory is touched meanwhile.

    Args:
        x: f32 [1, 4]: a, b, 0, 0.
        out: f32 [groups · 64, 4]; all are equal.
    """
    device = require_floats("multiply_add", x=x, out=out)
    groups = out.rows // GROUP
    require(out.shape == (groups * GROUP, 4) and groups > 0, "multiply_add: out must be [groups · 64, 4]")
    params = {"groups": groups, "steps": steps}
    device.dispatch(Program("multiply_add"), groups, params, parts(x=x, out=out), work=groups * GROUP * 32 * steps)
    return out


def _copy_reference(a: Arrays, d: Dims) -> Expected:
    value = a["x"].astype(np.float64)
    return Expected(value, np.abs(value))


COPY = Kernel(
    "copy",
    lambda rng, d: {"x": rng.standard_normal((d["rows"], d["columns"])).astype(np.float32)},
    lambda bench, a, d: copy(bench.put(a["x"]), bench.out(a["x"].shape)),
    _copy_reference,
    cases=({"rows": 1, "columns": 1}, {"rows": 31, "columns": 97}, {"rows": 21, "columns": 100001}),
    random=lambda rng: {"rows": int(rng.integers(1, 50)), "columns": int(rng.integers(1, 2000))},
    tolerance=0.0,
)


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    return multiply_add(bench.put(a["x"]), bench.out((GROUP * d["groups"], 4)), d["steps"])


def reference(a: Arrays, d: Dims) -> Expected:
    """The chains' closed form v · aⁿ + b · (aⁿ - 1) / (a - 1), added up; later steps scale a step's error by a."""
    factor, offset = (float(v) for v in a["x"][0, :2])
    power = factor ** d["steps"]
    value = sum(i / 8 * power + offset * (power - 1) / (factor - 1) for i in range(8))
    shape = (GROUP * d["groups"], 4)
    return Expected(np.full(shape, value), np.full(shape, 8 * (1 + abs(offset)) / (1 - abs(factor))))


MULTIPLY_ADD = Kernel(
    "multiply_add",
    lambda rng, d: {"x": np.array([[rng.uniform(0.1, 0.9), rng.uniform(-1, 1), 0, 0]], np.float32)},
    _run,
    reference,
    cases=({"groups": 1, "steps": 1}, {"groups": 3, "steps": 50}, {"groups": 65541, "steps": 2}),
    random=lambda rng: {"groups": int(rng.integers(1, 50)), "steps": int(rng.integers(1, 200))},
)
