"""Epilogues of the output and down projections: addition to the residual stream, alone or with the next norm."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Tensor
from llamagpu.kernels.arguments import parts, require, require_floats
from llamagpu.kernels.entry import AllExpected, Arrays, Bench, Dims, Expected, Kernel, Outputs
from llamagpu.kernels.prenorm import prenorm_columns, prenorm_reference
from llamagpu.kernels.product import Epilogue, product
from llamagpu.kernels.product_cases import (
    product_case,
    product_inputs,
    product_random,
    product_reference,
    product_setup,
)


def add_to(out: Tensor, factor: float = 1.0) -> Epilogue:
    """``out[m, n] += factor · product``, f32 [m, n]."""
    require_floats("add_to", out=out)
    return Epilogue(out.rows, out.columns, "add", {"out": out.part}, {"out_stride": out.stride, "factor": factor})


def add_norm(out: Tensor, prenorm: Tensor, weight: Tensor, factor: float = 1.0) -> Epilogue:
    """``out += factor · product``, and the prenorm buffer of the norm that follows.

    Args:
        out: f32 [m, columns], the residual stream.
        prenorm: f32 [m, prenorm_columns(columns)].
        weight: f32 [columns], of the norm.
    """
    require_floats("add_norm", out=out, prenorm=prenorm, weight=weight)
    require(prenorm.shape == (out.rows, prenorm_columns(out.columns)), "add_norm: prenorm has a wrong shape")
    require(weight.columns == out.columns, "add_norm: one weight for every column")
    windows = parts(out=out, prenorm=prenorm, norm_weight=weight)
    params = {"out_stride": out.stride, "columns": out.columns, "factor": factor}
    return Epilogue(out.rows, out.columns, "add_norm", windows, params)


def _run(bench: Bench, a: Arrays, d: Dims) -> Outputs:
    source, w, bias = product_setup(bench, a, d)
    out = bench.change(a["out"])
    if not d["norm"]:
        product(source, w, bias, add_to(out, d["factor"]), d["many"])
        return out
    prenorm = bench.out((d["m"], prenorm_columns(d["n"])))
    product(source, w, bias, add_norm(out, prenorm, bench.put(a["norm"]), d["factor"]), d["many"])
    return {"out": out, "prenorm": prenorm}


def reference(a: Arrays, d: Dims) -> AllExpected:
    """The residual stream after the addition, and the prenorm buffer, whose squares double an error."""
    value, size = product_reference(a, d)
    factor = float(np.float32(d["factor"]))
    value, size = factor * value + a["out"], factor * size + np.abs(a["out"])
    if not d["norm"]:
        return Expected(value, size)
    norm = a["norm"].astype(np.float64)
    scale = prenorm_reference(size, np.abs(norm))
    scale[:, 4 * -(-d["n"] // 4) :] *= 2
    return {"out": Expected(value, size), "prenorm": Expected(prenorm_reference(value, norm), scale)}


def _case(*sizes: object, norm: bool = True, factor: float = 1.0, **more: object) -> Dims:
    return product_case(*sizes, norm=norm, factor=factor, **more)  # type: ignore[arg-type]


def _random(rng: np.random.Generator) -> Dims:
    norm, factor = bool(rng.integers(3)), (1.0, 0.22)[rng.integers(2)]
    return product_random(rng, 1, ("plain", "merge"), norm=norm, factor=factor)


KERNEL = Kernel(
    "residual",
    product_inputs,
    _run,
    reference,
    cases=(
        _case(1, 1, 1, "plain", "f32"),
        _case(1, 576, 1536, "plain", "f16"),
        _case(1, 576, 576, "merge", "bf16", head=64, length=200),
        _case(8, 97, 48, "merge", "f32", True, head=16, length=1000, factor=0.22),
        _case(19, 132, 64, "plain", "int8-g64-bf16", "rows", many=True, factor=0.5, cut=True),
        _case(2, 128, 128, "merge", "int8-g64-bf16", head=32, length=257),
        _case(2, 96, 64, "merge", "f32", head=32, length=900, window=300),
        _case(33, 130, 77, "plain", "f16", norm=False, many=True),
        _case(3, 131, 96, "plain", "int4-g32-f16", True, cut=True),
        _case(1, 70, 40, "plain", "f16", norm=False),
    ),
    random=_random,
)
