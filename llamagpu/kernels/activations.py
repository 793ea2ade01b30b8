"""The activations of MLPs: files of ``shaders/lib/activation``, and their float64 references."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from llamagpu.kernels.arguments import require
from llamagpu.kernels.entry import F64

Reference = Callable[[F64], tuple[F64, F64]]


def _silu(g: F64) -> tuple[F64, F64]:
    sigmoid = 1 / (1 + np.exp(-g))
    return g * sigmoid, sigmoid * (1 + g * (1 - sigmoid))


def _gelu_tanh(g: F64) -> tuple[F64, F64]:
    root = np.sqrt(2 / np.pi)
    sigmoid = 1 / (1 + np.exp(np.minimum(-2 * root * (g + 0.044715 * g**3), 700)))
    return g * sigmoid, sigmoid + g * sigmoid * (1 - sigmoid) * 2 * root * (1 + 3 * 0.044715 * g * g)


def _relu2(g: F64) -> tuple[F64, F64]:
    positive = np.maximum(g, 0)
    return positive**2, 2 * positive


def _gelu(g: F64) -> tuple[F64, F64]:
    normal = 0.5 * (1 + np.vectorize(math.erf, otypes=[float])(g / np.sqrt(2)))
    return g * normal, normal + g * np.exp(-g * g / 2) / np.sqrt(2 * np.pi)


# The activation and its slope, by the name of its file.
ACTIVATIONS: dict[str, Reference] = {"silu": _silu, "gelu_tanh": _gelu_tanh, "relu2": _relu2, "gelu": _gelu}


def require_activation(kernel: str, name: str) -> None:
    """Raise KernelError unless the activation exists."""
    require(name in ACTIVATIONS, f"{kernel}: the activation is one of {', '.join(ACTIVATIONS)}, not {name!r}")


def activation_scale(name: str, g: F64, value: F64) -> F64:
    """The scale of an activation's error: e^-|t| is accurate to about |t| units in the last place (WGSL: 3 + 2|t|), and
    results below the smallest float32 are lost. t is g, or the cubic of gelu_tanh. The polynomial of gelu is off by up
    to 1.5e-7 |g|."""
    polynomial = 0.1 * np.abs(g) if name == "gelu" else 0.0
    t = 2 * np.sqrt(2 / np.pi) * (g + 0.044715 * g**3) if name == "gelu_tanh" else g
    return np.asarray(np.abs(value) * (1 + np.abs(t) / 8) + np.finfo(np.float32).tiny * np.abs(g) * 1e6 + polynomial)
