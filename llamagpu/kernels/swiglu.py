"""Epilogue of the gate and up projections: SwiGLU."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Tensor
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


def swiglu(out: Tensor) -> Epilogue:
    """``out[m, n] = silu(product[m, 2n]) · product[m, 2n + 1]``, f32 [m, n] (arXiv:2002.05202)."""
    require_floats("swiglu", out=out)
    return Epilogue(out.rows, 2 * out.columns, "swiglu", {"out": out.part}, {"out_stride": out.stride})


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    source, w, bias = product_setup(bench, a, d)
    out = bench.out((d["m"], d["n"] // 2))
    product(source, w, bias, swiglu(out), d["many"])
    return out


def reference(a: Arrays, d: Dims) -> Expected:
    """silu(gate) · up in float64, on the scale with which an error of either reaches the result."""
    value, size = product_reference(a, d)
    gate, up, gate_size, up_size = value[:, 0::2], value[:, 1::2], size[:, 0::2], size[:, 1::2]
    sigmoid = 1 / (1 + np.exp(-gate))
    silu = gate * sigmoid
    slope = np.abs(sigmoid * (1 + gate * (1 - sigmoid)))
    return Expected(silu * up, np.abs(silu) * up_size + slope * gate_size * np.abs(up) + np.abs(silu * up))


KERNEL = Kernel(
    "swiglu",
    product_inputs,
    _run,
    reference,
    cases=(
        product_case(1, 2, 1, "plain", "f32"),
        product_case(1, 3072, 576, "normed", "f16"),
        product_case(8, 256, 128, "normed", "int4-g64-f16", True),
        product_case(3, 98, 97, "normed", "bf16"),
        product_case(64, 512, 128, "plain", "bf16", many=True),
    ),
    random=lambda rng: product_random(rng, 2, ("plain", "normed") if rng.integers(2) else ("plain",)),
)
