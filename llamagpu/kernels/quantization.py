"""Affine quantization on the host: rounding, packing, and the exact values of the stored groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.errors import KernelError
from llamagpu.gpu import Affine, Tensor, narrow_bf16, widen_bf16
from llamagpu.kernels.arguments import owner, require, require_matrices

Quantized = tuple[npt.NDArray[np.uint32], npt.NDArray[Any], npt.NDArray[Any]]


def quantize_rows(w: npt.NDArray[Any], affine: Affine) -> Quantized:
    """Round rows to affine groups, in float32, as MLX does (``mlx.core.quantize``): the end of the group with the
    larger magnitude is represented exactly.

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


def dequantize_rows(stored: Quantized, affine: Affine) -> npt.NDArray[np.float64]:
    """The exact values scale · q + bias, float64 [rows, columns]."""
    packed, scales, biases = stored
    if affine.scales == "bf16":
        scales, biases = widen_bf16(scales), widen_bf16(biases)
    q = unpack(packed, affine.bits).reshape(len(packed), -1, affine.group).astype(np.float64)
    scale = scales.astype(np.float64)[..., None]
    bias = biases.astype(np.float64)[..., None] if affine.zero is None else -affine.zero * scale
    out: npt.NDArray[np.float64] = (q * scale + bias).reshape(len(packed), -1)
    return out


def widen_rows(stored: Quantized, affine: Affine, wider: Affine) -> Quantized:
    """Rows in a wider format with exactly the same values; see ``Affine.common``."""
    packed, scales, biases = stored
    q = unpack(packed, affine.bits)
    if wider.zero is not None:
        q = q + np.uint32(wider.zero - (affine.zero or 0))
    if affine.scales != wider.scales:
        scales, biases = (widen_bf16(a) if affine.scales == "bf16" else a.astype(np.float32) for a in (scales, biases))
    zero = affine.zero if wider.zero is None else wider.zero
    if zero is not None:
        biases = scales * scales.dtype.type(-zero)
    repeats = affine.group // wider.group
    return pack(q, wider.bits), np.repeat(scales, repeats, axis=1), np.repeat(biases, repeats, axis=1)


def upload(tensor: Tensor, first: int, stored: Quantized) -> None:
    """Write quantized rows from row ``first`` (a multiple of ``UPLOAD_ROWS``) on."""
    affine = tensor.affine
    assert affine is not None
    packed, scales, biases = stored
    data = np.ascontiguousarray(packed).view(np.uint8).reshape(len(packed), -1)
    tensor.write_rows(first, data)
    tensor.write_meta(first, affine.pack_meta(scales, biases))


def quantize(tensor: Tensor, bits: int, group: int = 64, scales: str = "f16") -> Tensor:
    """A float tensor [rows, columns] as a quantized one on the same device, for the weights of ``linear``.

    Args:
        bits: 4 or 8.
        group: elements of a row that share a scale and a bias (16, 32, 64 or 128); it must divide the columns.
        scales: dtype of scales and biases: f16, bf16 or f32.

    Raises:
        KernelError: the format is not supported, or the values are not finite.
    """
    owner("quantize", tensor=tensor)
    require_matrices("quantize", tensor=tensor)
    require(tensor.dtype in ("f32", "f16", "bf16"), f"quantize: {tensor!r} does not hold floats")
    values = tensor.numpy()
    if not np.isfinite(values).all():
        raise KernelError("quantize: the tensor holds NaN or infinity.", "They cannot be scaled in groups.")
    affine = Affine(bits, group, scales)
    out = tensor.device.empty_affine(tensor.rows, tensor.columns, affine)
    upload(out, 0, quantize_rows(values, affine))
    return out
