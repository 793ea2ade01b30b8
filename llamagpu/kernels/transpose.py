"""The transpose of a matrix."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import parts, require, require_floats, require_matrices
from llamagpu.kernels.entry import Arrays, Dims, Expected, Kernel, normal

_TILE = 16  # rows and columns of a workgroup


def transpose(x: Tensor, out: Tensor | None = None) -> Tensor:
    """``out[c, r] = x[r, c]``.

    Args:
        x: f32 [rows, columns].
        out: f32 [columns, rows], not the memory of x.
    """
    device = require_floats("transpose", x=x, out=out)
    require_matrices("transpose", x=x)
    rows, columns = x.shape
    out = out or device.empty((columns, rows))
    require(out.shape == (columns, rows), f"transpose: out must be [{columns}, {rows}], not {out!r}")
    across = -(-columns // _TILE)
    sizes = {"rows": rows, "columns": columns, "x_stride": x.stride, "out_stride": out.stride, "across": across}
    device.dispatch(Program("transpose"), -(-rows // _TILE) * across, sizes, parts(x=x, out=out))
    return out


def reference(a: Arrays, d: Dims) -> Expected:
    """The same numbers."""
    value = a["x"].T.astype(np.float64)
    return Expected(value, np.zeros_like(value))


KERNEL = Kernel(
    "transpose",
    normal("rows", "columns"),
    lambda bench, a, d: transpose(bench.put(a["x"]), bench.out((d["columns"], d["rows"]))),
    reference,
    cases=(
        {"rows": 1, "columns": 1},
        {"rows": 3, "columns": 97},
        {"rows": 105, "columns": 33},
        {"rows": 576, "columns": 1536},
        {"rows": 3, "columns": 1048577},
    ),
    random=lambda rng: {"rows": int(rng.integers(1, 300)), "columns": int(rng.integers(1, 300))},
    tolerance=0.0,
)
