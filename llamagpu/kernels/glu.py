"""Epilogues of the first half of an MLP: a gated linear unit (gate and up projections), or an activation alone."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Tensor
from llamagpu.kernels.activations import ACTIVATIONS, activation_scale, require_activation
from llamagpu.kernels.arguments import require_floats
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel
from llamagpu.kernels.product import Epilogue, product
from llamagpu.kernels.product_cases import (
    product_case,
    product_inputs,
    product_random,
    product_reference,
    product_setup,
)


def glu(out: Tensor, activation: str = "silu") -> Epilogue:
    """``out[m, n] = activation(product[m, 2n]) · product[m, 2n + 1]``, f32 [m, n] (arXiv:2002.05202)."""
    return _epilogue("glu", out, activation, 2 * out.columns)


def activated(out: Tensor, activation: str) -> Epilogue:
    """``out[m, n] = activation(product[m, n])``, f32 [m, n]."""
    return _epilogue("activate", out, activation, out.columns)


def _epilogue(lib: str, out: Tensor, activation: str, rows: int) -> Epilogue:
    require_floats(lib, out=out)
    require_activation(lib, activation)
    libs = (("activation", activation),)
    return Epilogue(out.rows, rows, lib, {"out": out.part}, {"out_stride": out.stride}, libs)


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    source, w, bias = product_setup(bench, a, d)
    out = bench.out((d["m"], d["n"] // 2 if d["gated"] else d["n"]))
    epilogue = (glu if d["gated"] else activated)(out, d["activation"])
    product(source, w, bias, epilogue, d["many"])
    return out


def reference(a: Arrays, d: Dims) -> Expected:
    """activation(gate) · up in float64, on the scale with which an error of either reaches the result; without a gate,
    up is 1."""
    value, size = product_reference(a, d)
    step = 2 if d["gated"] else 1
    gate, gate_size = value[:, 0::step], size[:, 0::step]
    up, up_size = (value[:, 1::2], size[:, 1::2]) if d["gated"] else (np.ones_like(gate), np.zeros_like(gate))
    active, slope = ACTIVATIONS[d["activation"]](gate)
    # relu2 bends at 0: an error of the gate acts with a slope of its own size
    scale = np.abs(active) * up_size + (np.abs(slope) * gate_size + 1e-6 * gate_size**2) * np.abs(up)
    return Expected(active * up, scale + activation_scale(d["activation"], gate, active) * np.abs(up))


def _case(*sizes: object, activation: str = "silu", gated: bool = True, **more: object) -> Dims:
    return product_case(*sizes, activation=activation, gated=gated, **more)  # type: ignore[arg-type]


def _random(rng: np.random.Generator) -> Dims:
    sources = ("plain", "normed") if rng.integers(2) else ("plain",)
    activation, gated = list(ACTIVATIONS)[rng.integers(len(ACTIVATIONS))], bool(rng.integers(2))
    return product_random(rng, 2, sources, activation=activation, gated=gated)


KERNEL = Kernel(
    "glu",
    product_inputs,
    _run,
    reference,
    cases=(
        _case(1, 2, 1, "plain", "f32"),
        _case(1, 3072, 576, "normed", "f16"),
        _case(8, 256, 128, "normed", "int4-g64-f16", True, activation="gelu_tanh"),
        _case(3, 98, 97, "normed", "bf16"),
        _case(64, 512, 128, "plain", "bf16", many=True),
        _case(3, 97, 96, "normed", "f32", activation="relu2", gated=False),
        _case(2, 132, 64, "plain", "f16", True, cut=True),
        _case(33, 1536, 384, "plain", "f16", True, activation="gelu", gated=False, many=True),
    ),
    random=_random,
)
