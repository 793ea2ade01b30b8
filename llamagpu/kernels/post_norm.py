"""RMSNorm of a block's output, added to the residual stream (post-norms), or beginning it."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import parts, require, require_floats, require_vectors
from llamagpu.kernels.entry import AllExpected, Arrays, Bench, Dims, Expected, Kernel, Outputs
from llamagpu.kernels.prenorm import NextNorm, next_norm, prenorm_columns, prenorm_reference
from llamagpu.kernels.rms_norm import WORKGROUP


def post_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor,
    *,
    add: bool = True,
    following: NextNorm | None = None,
) -> Tensor:
    """``out += RMSNorm(x)``, and the prenorm buffer of the norm that reads out next (arXiv:1910.07467).

    Args:
        x: f32 [rows, columns].
        weight: f32 [columns].
        out: f32, as x: the residual stream; not the memory of x.
        add: False stores the norm instead.
        following: the norm that reads out next; None prepares nothing.
    """
    device = require_floats("post_norm", x=x, weight=weight, out=out)
    require_vectors("post_norm", x.columns, weight=weight)
    require(out.shape == x.shape, f"post_norm: out must have the shape of {x!r}")
    libs, more = next_norm("post_norm", following, x.rows, x.columns)
    device.dispatch(
        Program("rms_norm", (("reduce", device.tuning.reduce), *libs), (("WORKGROUP", WORKGROUP), ("ADD", int(add)))),
        x.rows,
        {"rows": x.rows, "columns": x.columns, "columns4": x.stride // 4, "eps": eps},
        parts(x=x, weight=weight, out=out, **more),
        work=x.rows * x.columns,
    )
    return out


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    shape, columns = (d["rows"], d["columns"]), d["columns"]
    x = rng.standard_normal(shape).astype(np.float32) * np.float32(rng.uniform(0.01, 30))
    vectors = {name: rng.standard_normal((columns,)).astype(np.float32) for name in ("weight", "next")}
    return {"x": x, "out": rng.standard_normal(shape).astype(np.float32)} | vectors


def _run(bench: Bench, a: Arrays, d: Dims) -> Outputs:
    x, weight, norm_weight = (bench.put(a[name]) for name in ("x", "weight", "next"))
    out = bench.change(a["out"])
    if not d["norm"]:
        return post_norm(x, weight, 1e-5, out, add=d["add"])
    prenorm = bench.out((d["rows"], prenorm_columns(d["columns"])))
    post_norm(x, weight, 1e-5, out, add=d["add"], following=NextNorm(prenorm, norm_weight))
    return {"out": out, "prenorm": prenorm}


def reference(a: Arrays, d: Dims) -> AllExpected:
    """The residual stream in float64, on the scale of both terms; and the prenorm buffer. Squares double an error."""
    x, weight = a["x"].astype(np.float64), a["weight"].astype(np.float64)
    old = a["out"].astype(np.float64) * float(d["add"])
    y = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(d.get("eps", 1e-5))) * weight
    value, size = old + y, np.abs(old) + np.abs(y)
    if not d["norm"]:
        return Expected(value, size)
    norm = a["next"].astype(np.float64)
    scale = prenorm_reference(size, np.abs(norm))
    scale[:, 4 * -(-d["columns"] // 4) :] *= 2
    return {"out": Expected(value, size), "prenorm": Expected(prenorm_reference(value, norm), scale)}


def _case(rows: int, columns: int, norm: bool = True, add: bool = True) -> Dims:
    return {"rows": rows, "columns": columns, "norm": norm, "add": add}


KERNEL = Kernel(
    "post_norm",
    _inputs,
    _run,
    reference,
    cases=(
        _case(1, 1, norm=False),
        _case(3, 97),
        _case(1, 640),
        _case(33, 2048, norm=False, add=False),
        _case(2, 1152, add=False),
        _case(65539, 5),
    ),
    random=lambda rng: _case(
        int(rng.integers(1, 70)),
        int(rng.integers(1, 3000)),
        bool(rng.integers(3)),
        bool(rng.integers(2)),
    ),
)
