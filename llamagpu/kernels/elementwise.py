"""Elementwise arithmetic: sums, products, scaling, and SiLU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.activations import ACTIVATIONS, activation_scale, require_activation
from llamagpu.kernels.arguments import Pairs, parts, require, require_floats, require_number
from llamagpu.kernels.entry import F64, Arrays, Bench, Dims, Expected, Kernel, normal


def add(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """``out = a + b``, all f32 of one shape; out is not the memory of a or b."""
    return _elementwise("add", out, a=a, b=b)


def multiply(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """``out = a · b``, element by element, all f32 of one shape; out is not the memory of a or b."""
    return _elementwise("multiply", out, a=a, b=b)


def scale(x: Tensor, factor: float, out: Tensor | None = None) -> Tensor:
    """``out = x · factor``, f32 of any shape. The factor is rounded to float32; out is not the memory of x."""
    return _elementwise("scale", out, require_number("scale", "factor", factor), x=x)


def silu(x: Tensor, out: Tensor | None = None) -> Tensor:
    """``out = x / (1 + e^-x)`` (arXiv:1702.03118), f32 of any shape; out is not the memory of x."""
    return activate(x, "silu", out)


def activate(x: Tensor, activation: str, out: Tensor | None = None) -> Tensor:
    """``out = activation(x)``, one of ``ACTIVATIONS``; f32 of any shape; out is not the memory of x."""
    require_activation("activate", activation)
    return _elementwise("activate", out, libs=(("activation", activation),), x=x)


def _elementwise(operation: str, out: Tensor | None, factor: float = 0.0, libs: Pairs = (), **inputs: Tensor) -> Tensor:
    """``operation`` is the name of the function and of its file in ``lib/operation``, which binds the inputs."""
    device = require_floats(operation, **inputs, out=out)
    x = next(iter(inputs.values()))
    out = out or device.empty(x.shape)
    shapes = {t.shape for t in (*inputs.values(), out)}
    require(len(shapes) == 1, f"{operation}: {', '.join(inputs)} and out must have one shape, not {shapes}")
    count4 = x.rows * x.stride // 4
    program = Program("elementwise", (("operation", operation), *libs))
    device.dispatch(program, -(-count4 // 64), {"count4": count4, "factor": factor}, parts(**inputs, out=out))
    return out


# --- registry ----------------------------------------------------------------------------------

_CASES: tuple[Dims, ...] = (
    {"rows": 1, "columns": 1},
    {"rows": 3, "columns": 97},
    {"rows": 1, "columns": 576},
    {"rows": 31, "columns": 2048},
)
_FOLDED: Dims = {"rows": 67, "columns": 260000}  # an odd number of workgroups above 65,535
_FACTOR = -0.37


def _far_tails(rng: np.random.Generator, d: Dims) -> Arrays:
    x = rng.standard_normal((d["rows"], d["columns"])) * 4
    x.flat[::37] *= 30  # e^-x would overflow
    return {"x": x.astype(np.float32)}


def _plain(value: F64) -> Expected:
    return Expected(value, np.abs(value))


def _activation(name: str | None = None) -> Callable[[Arrays, Dims], Expected]:
    """The reference of an activation: the one named, or that of the case."""

    def reference(a: Arrays, d: Dims) -> Expected:
        x, chosen = a["x"].astype(np.float64), name or d["activation"]
        value, _ = ACTIVATIONS[chosen](x)
        return Expected(value, activation_scale(chosen, x, value))

    return reference


def _kernel(
    name: str,
    inputs: Callable[[np.random.Generator, Dims], Arrays],
    run: Callable[[Bench, Arrays, Tensor], Tensor],
    reference: Callable[[Arrays, Dims], Expected],
    *more: Dims,
) -> Kernel:
    def run_case(bench: Bench, a: Arrays, d: Dims) -> Tensor:
        return run(bench, a, bench.out((d["rows"], d["columns"])))

    def random(rng: np.random.Generator) -> Dims:
        return {"rows": int(rng.integers(1, 50)), "columns": int(rng.integers(1, 2000))}

    return Kernel(name, inputs, run_case, reference, cases=(*_CASES, *more), random=random)


_TWO, _ONE = normal("rows", "columns", names=("a", "b")), normal("rows", "columns")
ADD = _kernel(
    "add",
    _TWO,
    lambda bench, a, out: add(bench.put(a["a"]), bench.put(a["b"]), out),
    lambda a, d: _plain(a["a"].astype(np.float64) + a["b"]),
    _FOLDED,
)
MULTIPLY = _kernel(
    "multiply",
    _TWO,
    lambda bench, a, out: multiply(bench.put(a["a"]), bench.put(a["b"]), out),
    lambda a, d: _plain(a["a"].astype(np.float64) * a["b"]),
)
SCALE = _kernel(
    "scale",
    _ONE,
    lambda bench, a, out: scale(bench.put(a["x"]), _FACTOR, out),
    lambda a, d: _plain(a["x"].astype(np.float64) * np.float32(d.get("factor", _FACTOR))),
)
SILU = _kernel("silu", _far_tails, lambda bench, a, out: silu(bench.put(a["x"]), out), _activation("silu"))
ACTIVATE = Kernel(
    "activate",
    _far_tails,
    lambda bench, a, d: activate(bench.put(a["x"]), d["activation"], bench.out(a["x"].shape)),
    _activation(),
    cases=tuple(
        {"rows": rows, "columns": columns, "activation": name}
        for name in ACTIVATIONS
        for rows, columns in ((1, 1), (3, 97), (31, 2048))
    ),
    random=lambda rng: {
        "rows": int(rng.integers(1, 50)),
        "columns": int(rng.integers(1, 2000)),
        "activation": list(ACTIVATIONS)[rng.integers(len(ACTIVATIONS))],
    },
)
