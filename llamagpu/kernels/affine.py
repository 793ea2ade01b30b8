"""Affine quantisation on the host: rounding, packing, and the exact values of what was stored; and the kernel that
widens any weight format to float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Affine, Program, Tensor, narrow_bf16, widen_bf16
from llamagpu.kernels.base import Arrays, Bench, Dims, Expected, Kernel, as_stored, require, weight_parts, weights_libs

Quantised = tuple[npt.NDArray[np.uint32], npt.NDArray[Any], npt.NDArray[Any]]
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
)


def quantize(w: npt.NDArray[Any], affine: Affine) -> Quantised:
    """Round rows to affine groups, in float32, as MLX does (``mlx.core.quantize``): of the group's two ends, the one of
    larger magnitude is met exactly.

    Args:
        w: floats [rows, columns]; the groups divide the columns.

    Returns:
        Packed uint32 [rows, columns · bits / 32], and scales and biases [rows, columns / group], rounded to the
        format's dtype (bf16 as uint16 bits).
    """
    most = np.float32((1 << affine.bits) - 1)
    groups = w.astype(np.float32).reshape(len(w), -1, affine.group)
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    if affine.zero is not None:
        ends = np.where(np.abs(low) > np.abs(high), low, high)
        scale = (-ends / np.float32(affine.zero)).astype(np.float32)
        scale = np.where(scale == 0, np.float32(1e-7), scale)
        bias = -np.float32(affine.zero) * scale
    else:
        use_low = np.abs(low) > np.abs(high)
        scale = np.maximum((high - low) / most, np.float32(1e-7))
        scale = np.where(use_low, scale, -scale)
        edge = np.where(use_low, low, high)
        steps = np.rint(edge / scale)
        met = steps != 0
        scale = np.where(met, edge / np.where(met, steps, 1), scale).astype(np.float32)
        bias = np.where(met, edge, 0).astype(np.float32)
    q = np.clip(np.rint((groups - bias[..., None]) / scale[..., None]), 0, most).astype(np.uint32)
    return pack(q.reshape(len(w), -1), affine.bits), _rounded(scale, affine), _rounded(bias, affine)


def _rounded(values: npt.NDArray[np.float32], affine: Affine) -> npt.NDArray[Any]:
    if affine.scales == "bf16":
        return narrow_bf16(values)
    return values.astype(np.float16 if affine.scales == "f16" else np.float32)


def pack(q: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint32]:
    """Unsigned values [rows, columns] as uint32 [rows, columns · bits / 32], the first in the lowest bits."""
    per = 32 // bits
    shifted = q.reshape(len(q), -1, per) << (np.arange(per, dtype=np.uint32) * np.uint32(bits))
    packed: npt.NDArray[np.uint32] = np.bitwise_or.reduce(shifted, axis=-1)
    return packed


def unpack(packed: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint32]:
    """The inverse of ``pack``."""
    shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
    return ((packed[..., None] >> shifts) & np.uint32((1 << bits) - 1)).reshape(len(packed), -1)


def dequantize(stored: Quantised, affine: Affine) -> npt.NDArray[np.float64]:
    """The exact values scale · q + bias, float64 [rows, columns]."""
    packed, scales, biases = stored
    if affine.scales == "bf16":
        scales, biases = widen_bf16(scales), widen_bf16(biases)
    q = unpack(packed, affine.bits).reshape(len(packed), -1, affine.group).astype(np.float64)
    scale = scales.astype(np.float64)[..., None]
    bias = biases.astype(np.float64)[..., None] if affine.zero is None else -affine.zero * scale
    out: npt.NDArray[np.float64] = (q * scale + bias).reshape(len(packed), -1)
    return out


def upload(tensor: Tensor, first: int, stored: Quantised) -> None:
    """Write quantised rows from row ``first`` (a multiple of ``UPLOAD_ROWS``) on."""
    affine = tensor.affine
    assert affine is not None
    packed, scales, biases = stored
    data = np.ascontiguousarray(packed).view(np.uint8).reshape(len(packed), -1)
    tensor.device.upload_rows(tensor.parts, first, data, tensor.woven)
    tensor.device.upload_rows(tensor.meta, first, affine.pack_meta(scales, biases), tensor.woven)


# --- cases: weights in any format ------------------------------------------------------------


def columns_for(columns: int, format: str) -> int:
    """Columns that the format can hold: rounded up to whole groups."""
    if format in FLOATS:
        return columns
    group = Affine.parse(format).group
    return -(-columns // group) * group


def weight_inputs(rng: np.random.Generator, rows: int, columns: int, format: str) -> Arrays:
    """Random weights as they are stored: ``w`` has their exact values, and quantised ones come with their parts."""
    values = rng.standard_normal((rows, columns)) * 0.3
    if format in FLOATS:
        return {"w": as_stored(values, format)}
    affine = Affine.parse(format)
    stored = quantize(values, affine)
    return {"w": dequantize(stored, affine), **dict(zip(("packed", "scales", "biases"), stored, strict=True))}


def put_weights(bench: Bench, a: Arrays, format: str) -> Tensor:
    """The weights of ``weight_inputs`` on the device."""
    woven = bench.device.tuning.order == "woven"
    if format in FLOATS:
        return bench.put(a["w"], format, woven)
    rows, columns = a["w"].shape
    tensor = bench.device.empty_affine(rows, columns, Affine.parse(format), tail=bench.tail, woven=woven)
    bench.made.append(tensor)
    upload(tensor, 0, (a["packed"], a["scales"], a["biases"]))
    return tensor


def dequantize_rows(w: Tensor, out: Tensor | None = None) -> Tensor:
    """A weight tensor of any format as f32 [rows, columns]."""
    device = w.device
    out = out or device.empty((w.rows, w.columns))
    require(out.shape == (w.rows, w.columns), "dequantize: out must have the shape of the weights")
    libs, consts = weights_libs(w)
    columns4 = -(-w.columns // 4)
    for part, bindings in weight_parts(w):
        params = {"rows": part.rows, "first": part.first, "columns4": columns4, "stride4": w.stride // 4}
        groups = -(-part.rows * columns4 // 64)
        device.dispatch(Program("dequantize", libs, consts), groups, params, {"out": out.part} | bindings)
    return out


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    return weight_inputs(rng, d["rows"], columns_for(d["columns"], d["format"]), d["format"])


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    return dequantize_rows(put_weights(bench, a, d["format"]), bench.out(a["w"].shape))


def reference(a: Arrays, d: Dims) -> Expected:
    """The stored values; on their own scale |scale · q| + |bias|, which a driver without fma may round at."""
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
        {"rows": 140000, "columns": 120, "format": "int8-g16-f32"},
    ),
    random=_random,
    tolerance=1e-6,
    depends=("f16", "order"),
)
