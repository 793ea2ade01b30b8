"""Products of a weight matrix with a few vectors, as in a decode step."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Tensor
from llamagpu.kernels.arguments import owner
from llamagpu.kernels.dequantize import FORMATS, columns_for, put_weights, weight_inputs
from llamagpu.kernels.dequantize import reference as weight_reference
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel
from llamagpu.kernels.product import MAX_VECTORS, plain, product, store


def matvec(x: Tensor, w: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """``out[c] = W x[c] + bias``; the order of additions does not depend on the number of vectors.

    Args:
        x: f32 [c, k].
        w: [n, k], f32, f16, bf16 or affine; may have several parts.
        bias: f32 [n], or [c, n].
        out: f32 [c, n].
    """
    device = owner("matvec", x=x, w=w, bias=bias, out=out)
    out = out or device.empty((x.rows, w.rows))
    product(plain(x), w, bias, store(out))
    return out


def product_inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    """Random x [m, k], weights [n, k] as stored in the case's format, and a bias if the case has one."""
    columns = columns_for(d["k"], d["format"])
    x = rng.standard_normal((d["m"], columns)).astype(np.float32) * np.float32(rng.uniform(0.1, 4))
    a = {"x": x} | weight_inputs(rng, d["n"], columns, d["format"])
    return a | ({"bias": rng.standard_normal((d["n"],)).astype(np.float32)} if d["bias"] else {})


def product_reference(a: Arrays, d: Dims) -> Expected:
    """x Wᵀ + bias in float64, on the scale Σ|w · x| + |bias|."""
    x, w = a["x"].astype(np.float64), weight_reference(a, d)
    bias = a.get("bias", np.zeros(d["n"]))
    return Expected(x @ w.value.T + bias, np.abs(x) @ w.scale.T + np.abs(bias))


def product_put(bench: Bench, a: Arrays, d: Dims) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """The tensors of a case: x, w, bias or None, out."""
    bias = bench.put(a["bias"]) if d["bias"] else None
    return bench.put(a["x"]), put_weights(bench, a, d), bias, bench.out((d["m"], d["n"]))


def product_random(rng: np.random.Generator, low: int, high: int) -> Dims:
    """A random shape with low ≤ m < high. m is one of a few numbers, because each compiles a pipeline."""
    counts = [m for m in (1, 2, 8, 11, 16, 40, 129) if low <= m < high]
    sizes = {"m": counts[rng.integers(len(counts))], "n": int(rng.integers(1, 500)), "k": int(rng.integers(1, 700))}
    return sizes | {"format": FORMATS[rng.integers(len(FORMATS))], "bias": bool(rng.integers(2))}


KERNEL = Kernel(
    "matvec",
    product_inputs,
    lambda bench, a, d: matvec(*product_put(bench, a, d)),
    product_reference,
    cases=(
        {"m": 1, "n": 1, "k": 1, "format": "f32", "bias": False},
        {"m": 1, "n": 97, "k": 333, "format": "f16", "bias": True},
        {"m": 3, "n": 105, "k": 97, "format": "bf16", "bias": False},
        {"m": 1, "n": 960, "k": 576, "format": "f16", "bias": False},
        {"m": 8, "n": 576, "k": 1536, "format": "bf16", "bias": True},
        {"m": 4, "n": 512, "k": 2048, "format": "f32", "bias": False},
        {"m": 1, "n": 960, "k": 576, "format": "int4-g64-f16", "bias": True},
        {"m": 1, "n": 99, "k": 48, "format": "int4-g16-f16", "bias": False},
        {"m": 5, "n": 333, "k": 2048, "format": "int8-g64-bf16", "bias": False},
        {"m": 3, "n": 133, "k": 97, "format": "f16", "bias": True, "cut": True},
        {"m": 2, "n": 130, "k": 96, "format": "int8-g32-f16-z128", "bias": True, "cut": True},
        {"m": 524290, "n": 3, "k": 3, "format": "f16", "bias": False},
    ),
    random=lambda rng: product_random(rng, 1, 2 * MAX_VECTORS + 2),
)
