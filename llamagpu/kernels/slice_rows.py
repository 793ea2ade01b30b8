"""Copies of consecutive rows."""

from __future__ import annotations

from operator import index

import numpy as np

from llamagpu.gpu import Program, Tensor, widen_bf16
from llamagpu.kernels.arguments import owner, parts, require
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel


def slice_rows(x: Tensor, begin: int, end: int, out: Tensor | None = None) -> Tensor:
    """``out = x[begin:end]`` as a copy, which may begin at any row. ``x[begin:end]`` itself is a view, and views begin
    only where a binding may.

    Args:
        x: [..., columns] of any dtype, not quantized or woven; all axes but the last are rows.
        begin: the first row.
        end: the row after the last one.
        out: [end - begin, columns] of the dtype of x, not the memory of x.
    """
    device = owner("slice_rows", x=x, out=out)
    begin, end = index(begin), index(end)
    require(0 <= begin < end <= x.rows, f"slice_rows: rows {begin} to {end} are not in {x!r}")
    require(x.affine is None and not x.woven, f"slice_rows: {x!r} is quantized or woven")
    shape = (end - begin, x.columns)
    out = out or device.empty(shape, x.dtype)
    require(out.shape == shape and out.dtype == x.dtype, f"slice_rows: out must be {list(shape)} {x.dtype}")
    row4 = x.data_bytes // 16
    sizes = {"first4": begin * row4, "count4": shape[0] * row4}
    device.dispatch(Program("slice_rows"), -(-sizes["count4"] // 64), sizes, parts(x=x, out=out))
    return out


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    shape, dtype = (d["rows"], d["columns"]), d["dtype"]
    if dtype == "f32":
        return {"x": rng.standard_normal(shape, np.float32)}
    x = rng.integers(0, 2**32 if dtype == "u32" else 0x7C00, shape)  # as bits of f16 and bf16 these are finite
    return {"x": x.astype(np.uint32) if dtype == "u32" else x.astype(np.uint16)}


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    x = bench.put(a["x"] if d["dtype"] != "f16" else a["x"].view(np.float16), d["dtype"])
    return slice_rows(x, d["begin"], d["end"], bench.out((d["end"] - d["begin"], d["columns"]), d["dtype"]))


def reference(a: Arrays, d: Dims) -> Expected:
    """The same numbers."""
    x = a["x"]
    wide = widen_bf16(x) if d["dtype"] == "bf16" else x.view(np.float16) if d["dtype"] == "f16" else x
    value = wide[d["begin"] : d["end"]].astype(np.float64)
    return Expected(value, np.zeros_like(value))


def _case(rows: int, columns: int, begin: int, end: int, dtype: str) -> Dims:
    return {"rows": rows, "columns": columns, "begin": begin, "end": end, "dtype": dtype}


def _random(rng: np.random.Generator) -> Dims:
    rows = int(rng.integers(1, 60))
    begin = int(rng.integers(0, rows))
    dtype = ("f32", "u32", "f16", "bf16")[rng.integers(4)]
    return _case(rows, int(rng.integers(1, 900)), begin, int(rng.integers(begin + 1, rows + 1)), dtype)


KERNEL = Kernel(
    "slice_rows",
    _inputs,
    _run,
    reference,
    cases=(
        _case(1, 1, 0, 1, "f32"),
        _case(7, 3, 2, 5, "u32"),
        _case(9, 97, 1, 8, "f16"),
        _case(33, 576, 5, 6, "bf16"),
        _case(31, 2048, 3, 31, "f32"),
        _case(4194320, 1, 7, 4194317, "u32"),
    ),
    random=_random,
    tolerance=0.0,
)
