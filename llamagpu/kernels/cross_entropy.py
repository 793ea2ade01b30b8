"""Cross-entropy of rows: the negative log-probabilities of target tokens."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import owner, parts, require, require_floats, require_vectors
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel
from llamagpu.kernels.rms_norm import WORKGROUP

IGNORED = 0xFFFFFFFF


def cross_entropy(x: Tensor, targets: Tensor, out: Tensor | None = None) -> Tensor:
    """``out[r] = -log softmax(x[r])[targets[r]]``, as torch's cross_entropy with ``reduction="none"``: the negative
    log-probabilities of given tokens.

    Args:
        x: f32 [..., columns], logits.
        targets: u32 [rows] or [1, rows]; a target that is no column, such as 0xFFFFFFFF, gives 0.
        out: f32, in the shape of targets.
    """
    device = owner("cross_entropy", x=x, targets=targets, out=out)
    require_vectors("cross_entropy", x.rows, targets=targets)
    require(targets.dtype == "u32", f"cross_entropy: targets must be a u32 tensor, not {targets!r}")
    out = out or device.empty(targets.shape)
    require_floats("cross_entropy", x=x, out=out)
    require(out.shape == targets.shape, f"cross_entropy: out must have the shape of {targets!r}")
    device.dispatch(
        Program("cross_entropy", (("reduce", device.tuning.reduce),), (("WORKGROUP", WORKGROUP),)),
        x.rows,
        {"rows": x.rows, "columns": x.columns, "stride": x.stride},
        parts(x=x, targets=targets, out=out),
        work=x.rows * x.columns,
    )
    return out


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    targets = rng.integers(0, d["columns"], (d["rows"],)).astype(np.uint32)
    targets[1::5] = IGNORED
    return {"x": (rng.standard_normal((d["rows"], d["columns"])) * d["spread"]).astype(np.float32), "targets": targets}


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    return cross_entropy(bench.put(a["x"]), bench.put(a["targets"]), bench.out((d["rows"],)))


def reference(a: Arrays, d: Dims) -> Expected:
    """In float64. The scale is the sum of the two terms, and of the error of e^v, which grows with the exponent v
    (WGSL: 3 + 2|v| units)."""
    x = a["x"].astype(np.float64)
    shifted = x - x.max(axis=-1, keepdims=True)
    e = np.exp(shifted)
    total = e.sum(axis=-1)
    wanted = a["targets"] < x.shape[1]
    chosen = shifted[np.arange(len(x)), np.where(wanted, a["targets"], 0)]
    powers = (e * (1 + np.abs(shifted) / 8)).sum(axis=-1) / total
    scale = np.log(total) + np.abs(chosen) + powers
    return Expected(np.where(wanted, np.log(total) - chosen, 0), np.where(wanted, scale, 0))


KERNEL = Kernel(
    "cross_entropy",
    _inputs,
    _run,
    reference,
    cases=(
        {"rows": 1, "columns": 1, "spread": 1.0},
        {"rows": 3, "columns": 105, "spread": 3.0},
        {"rows": 2, "columns": 50257, "spread": 5.0},
        {"rows": 31, "columns": 600, "spread": 30.0},
        {"rows": 65541, "columns": 3, "spread": 1.0},
    ),
    random=lambda rng: {"rows": int(rng.integers(1, 50)), "columns": int(rng.integers(1, 3000)), "spread": 4.0},
)
