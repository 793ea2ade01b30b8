"""LayerNorm of rows."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import parts, require, require_floats, require_vectors
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel
from llamagpu.kernels.rms_norm import WORKGROUP


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """``out[r] = (x[r] - mean) / sqrt(variance + eps) · weight + bias`` (arXiv:1607.06450).

    Args:
        x: f32 [..., columns].
        weight: f32 [columns].
        bias: f32 [columns].
        out: f32, as x; not the memory of x.
    """
    device = require_floats("layer_norm", x=x, weight=weight, bias=bias, out=out)
    out = out or device.empty(x.shape)
    require_vectors("layer_norm", x.columns, weight=weight, bias=bias)
    require(out.shape == x.shape, "layer_norm: out must have the shape of x")
    device.dispatch(
        Program("layer_norm", (("reduce", device.tuning.reduce),), (("WORKGROUP", WORKGROUP),)),
        x.rows,
        {"rows": x.rows, "columns": x.columns, "stride": x.stride, "eps": eps},
        parts(x=x, weight=weight, bias=bias, out=out),
        work=x.rows * x.columns,
    )
    return out


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    x = rng.standard_normal((d["rows"], d["columns"])) + d["mean"]
    vectors = {name: rng.standard_normal((d["columns"],)).astype(np.float32) for name in ("weight", "bias")}
    return {"x": x.astype(np.float32)} | vectors


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    out = bench.out(a["x"].shape)
    return layer_norm(bench.put(a["x"]), bench.put(a["weight"]), bench.put(a["bias"]), 1e-5, out)


def reference(a: Arrays, d: Dims) -> Expected:
    """LayerNorm in float64. The scale is (|x| + |mean|) / σ · |w| + |b|: the difference is rounded at that size."""
    x = a["x"].astype(np.float64)
    mean = x.mean(axis=-1, keepdims=True)
    sigma = np.sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + np.float32(1e-5))
    value = (x - mean) / sigma * a["weight"] + a["bias"]
    return Expected(value, (np.abs(x) + np.abs(mean)) / sigma * np.abs(a["weight"]) + np.abs(a["bias"]))


KERNEL = Kernel(
    "layer_norm",
    _inputs,
    _run,
    reference,
    cases=(
        {"rows": 1, "columns": 1, "mean": 0.0},
        {"rows": 3, "columns": 97, "mean": 3.0},
        {"rows": 1, "columns": 768, "mean": 0.0},
        {"rows": 33, "columns": 2048, "mean": 0.5},
        {"rows": 2, "columns": 1000, "mean": 1000.0},
        {"rows": 65539, "columns": 5, "mean": 0.0},
    ),
    random=lambda rng: {"rows": int(rng.integers(1, 70)), "columns": int(rng.integers(1, 3000)), "mean": rng.normal()},
)
