"""The plain epilogue of products, ``product.store``, with its factor and cap, behind every source."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Tensor
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel
from llamagpu.kernels.product import product, store
from llamagpu.kernels.product_cases import (
    product_case,
    product_inputs,
    product_random,
    product_reference,
    product_setup,
)


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    source, w, bias = product_setup(bench, a, d)
    out = bench.out((d["m"], d["n"]))
    product(source, w, bias, store(out, d["factor"], d["cap"]), d["many"])
    return out


def reference(a: Arrays, d: Dims) -> Expected:
    """factor · product in float64, or cap · tanh(that / cap), whose slope is at most 1."""
    value, size = (float(np.float32(d["factor"])) * t for t in product_reference(a, d))
    if d["cap"] is not None:
        value = d["cap"] * np.tanh(value / d["cap"])
    return Expected(value, np.abs(size))


def _case(*sizes: object, factor: float = 1.0, cap: float | None = None, **more: object) -> Dims:
    return product_case(*sizes, factor=factor, cap=cap, **more)  # type: ignore[arg-type]


def _random(rng: np.random.Generator) -> Dims:
    factor, cap = (1.0, 0.25)[rng.integers(2)], (None, 30.0)[rng.integers(2)]
    sources = (("plain", "normed"), ("plain", "merge"))[rng.integers(2)]
    return product_random(rng, 1, sources, factor=factor, cap=cap)


KERNEL = Kernel(
    "store",
    product_inputs,
    _run,
    reference,
    cases=(
        _case(1, 1, 1, "plain", "f32", cap=2.0),
        _case(1, 576, 576, "normed", "f16", factor=0.25),
        _case(8, 97, 128, "normed", "int4-g64-f16", True, cap=30.0),
        _case(2, 131, 96, "normed", "bf16", factor=-3.0, cap=5.0, cut=True),
        _case(1, 128, 128, "merge", "int8-g32-bf16", head=32, length=600, factor=0.5),
        _case(40, 130, 77, "plain", "f16", True, factor=2.0, cap=9.0, many=True),
    ),
    random=_random,
)
