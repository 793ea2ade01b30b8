"""Widening weights of any format to float32; and the random weights that other kernels' cases use."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Affine, Program, Tensor, widen_bf16
from llamagpu.kernels.arguments import owner, require, require_floats, weight_parts, weights_libs
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel, as_stored
from llamagpu.kernels.quantization import dequantize_rows, quantize_rows, upload

FLOATS = ("f32", "f16", "bf16")
FORMATS = (
    *FLOATS,
    "int8-g64-f16",
    "int4-g64-f16",
    "int8-g32-bf16",
    "int4-g128-bf16",
    "int8-g16-f32",
    "int4-g32-f32",
    "int8-g32-f16-z128",
    "int4-g32-f16-z8",
    "int4-g64-bf16-z8",
    "int8-g32-f32-z128",
    "int4-g16-f32",
    "int4-g16-f32-z8",
    "int8-g16-f32-z32",
)
SUBNORMAL = 1e-4  # weights whose float16 scales are subnormal, as in many GGUF files: a driver must not flush them


def dequantize(w: Tensor, out: Tensor | None = None) -> Tensor:
    """A tensor of any weight format (f32, f16, bf16 or affine) as f32 of the same shape."""
    device = owner("dequantize", w=w, out=out)
    require(w.dtype != "u32", f"dequantize: {w!r} does not hold weights")
    out = out or device.empty(w.shape)
    require_floats("dequantize", out=out)
    require(out.shape == w.shape, f"dequantize: out must have the shape of {w!r}")
    libs, consts = weights_libs(w)
    columns4 = -(-w.columns // 4)
    for part, bindings in weight_parts(w):
        params = {"rows": part.rows, "first": part.first, "columns4": columns4, "stride4": w.stride // 4}
        groups = -(-part.rows * columns4 // 64)
        device.dispatch(Program("dequantize", libs, consts), groups, params, {"out": out.part} | bindings)
    return out


# --- cases: weights in any format ------------------------------------------------------------


def columns_for(columns: int, format: str) -> int:
    """Columns rounded up to whole groups of the format."""
    if format in FLOATS:
        return columns
    group = Affine.parse(format).group
    return -(-columns // group) * group


def weight_inputs(rng: np.random.Generator, rows: int, columns: int, format: str, size: float = 0.3) -> Arrays:
    """Random weights: ``w`` has their exact values as stored; quantized ones come with their parts."""
    values = rng.standard_normal((rows, columns)) * size
    if format in FLOATS:
        return {"w": as_stored(values, format)}
    affine = Affine.parse(format)
    stored = quantize_rows(values, affine)
    return {"w": dequantize_rows(stored, affine), **dict(zip(("packed", "scales", "biases"), stored, strict=True))}


def put_weights(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    """The weights of ``weight_inputs`` on the device, in two parts if the case has ``cut``."""
    rows, columns = a["w"].shape
    tensor = bench.weights(rows, columns, d["format"], bench.device.tuning.order == "woven", d.get("cut", False))
    if d["format"] in FLOATS:
        tensor.write(a["w"])
    else:
        upload(tensor, 0, (a["packed"], a["scales"], a["biases"]))
    return tensor


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    return weight_inputs(rng, d["rows"], columns_for(d["columns"], d["format"]), d["format"], d.get("size", 0.3))


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    return dequantize(put_weights(bench, a, d), bench.out(a["w"].shape))


def reference(a: Arrays, d: Dims) -> Expected:
    """The stored values, on the scale |scale · q| + |bias|: a driver without fma rounds at that size."""
    value = a["w"].astype(np.float64)
    scale = np.abs(value)
    if "scales" in a:
        affine = Affine.parse(d["format"])
        biases = widen_bf16(a["biases"]) if affine.scales == "bf16" else a["biases"]
        scale = scale + np.repeat(np.abs(biases.astype(np.float64)), affine.group, axis=1)
    return Expected(value, scale)


def _random(rng: np.random.Generator) -> Dims:
    sizes = {"rows": int(rng.integers(1, 50)), "columns": int(rng.integers(1, 900))}
    return sizes | {"format": FORMATS[rng.integers(len(FORMATS))]}


KERNEL = Kernel(
    "dequantize",
    _inputs,
    _run,
    reference,
    cases=(
        *({"rows": 1, "columns": 1, "format": f} for f in FORMATS),
        *({"rows": 33, "columns": 97, "format": f} for f in FORMATS),
        {"rows": 576, "columns": 1536, "format": "int4-g64-f16"},
        *({"rows": 5, "columns": 96, "format": f, "size": SUBNORMAL} for f in ("int8-g32-f16-z128", "int4-g32-f16")),
        *({"rows": 131, "columns": 96, "format": f, "cut": True} for f in ("f16", "int4-g32-f16")),
        {"rows": 140000, "columns": 120, "format": "bf16"},
    ),
    random=_random,
    tolerance=1e-6,
)
