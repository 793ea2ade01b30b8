"""The elementwise half of a gated linear unit: activation(gate) · up, over interleaved columns."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.activations import ACTIVATIONS, activation_scale, require_activation
from llamagpu.kernels.arguments import parts, require, require_floats
from llamagpu.kernels.entry import Arrays, Dims, Expected, Kernel


def gate(x: Tensor, out: Tensor | None = None, activation: str = "silu") -> Tensor:
    """``out[r, c] = activation(x[r, 2c]) · x[r, 2c + 1]`` (arXiv:2002.05202).

    Args:
        x: f32 [rows, 2 · columns], gate and up side by side.
        out: f32 [rows, columns].
    """
    device = require_floats("gate", x=x, out=out)
    require_activation("gate", activation)
    columns = x.columns // 2
    out = out or device.empty((x.rows, columns))
    require(x.columns == 2 * columns and out.shape == (x.rows, columns), "gate: x must be [rows, 2 · columns]")
    device.dispatch(
        Program("gate", (("activation", activation),)),
        -(-x.rows * columns // 64),
        {"rows": x.rows, "columns": columns, "in_stride2": x.stride // 2, "out_stride": out.stride},
        parts(x=x, out=out),
    )
    return out


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    x = rng.standard_normal((d["rows"], 2 * d["columns"])) * 4
    x.flat[::37] *= 30  # far tails: e^-g would overflow
    return {"x": x.astype(np.float32)}


def reference(a: Arrays, d: Dims) -> Expected:
    """activation(gate) · up in float64."""
    x = a["x"].astype(np.float64)
    active, slope = ACTIVATIONS[d["activation"]](x[:, 0::2])
    scale = activation_scale(d["activation"], x[:, 0::2], active) + np.abs(slope * x[:, 0::2])
    return Expected(active * x[:, 1::2], scale * np.abs(x[:, 1::2]))


def _random(rng: np.random.Generator) -> Dims:
    sizes = {"rows": int(rng.integers(1, 50)), "columns": int(rng.integers(1, 2000))}
    return sizes | {"activation": list(ACTIVATIONS)[rng.integers(len(ACTIVATIONS))]}


KERNEL = Kernel(
    "gate",
    _inputs,
    lambda bench, a, d: gate(bench.put(a["x"]), bench.out((d["rows"], d["columns"])), d["activation"]),
    reference,
    cases=(
        {"rows": 1, "columns": 1, "activation": "silu"},
        {"rows": 3, "columns": 97, "activation": "gelu_tanh"},
        {"rows": 1, "columns": 1536, "activation": "silu"},
        {"rows": 31, "columns": 333, "activation": "relu2"},
        {"rows": 32, "columns": 8192, "activation": "silu"},
        {"rows": 3, "columns": 1400067, "activation": "silu"},
    ),
    random=_random,
)
