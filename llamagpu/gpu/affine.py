"""Quantized rows: w = scale · q + bias in groups along a row. Values are packed in u32; scales and biases lie apart."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.errors import KernelError
from llamagpu.gpu.dtypes import NUMPY, narrow_bf16

GROUPS = (16, 32, 64, 128)
BITS = (4, 8)
SCALES = {"f16": 2, "bf16": 2, "f32": 4}


@dataclass(frozen=True)
class Affine:
    """The format of a quantized tensor.

    Attributes:
        bits: 4 or 8; q is unsigned, packed into u32 lowest first (MLX's layout).
        group: elements of a row that share a scale and a bias: 16, 32, 64 or 128.
        scales: dtype of scale and bias: f16, bf16 or f32.
        zero: None if the bias is stored; otherwise the bias is -zero · scale.
    """

    bits: int
    group: int
    scales: str = "f16"
    zero: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.group not in GROUPS or self.scales not in SCALES:
            known = f"Bits are one of {BITS}, groups of {GROUPS}, scales of {tuple(SCALES)}."
            raise KernelError(f"The affine format {self} is not supported.", known)

    def __str__(self) -> str:
        return f"int{self.bits}-g{self.group}-{self.scales}" + ("" if self.zero is None else f"-z{self.zero}")

    @classmethod
    def parse(cls, text: str) -> Affine:
        """The inverse of ``str``."""
        bits, group, scales, *zero = text.split("-")
        return cls(int(bits[3:]), int(group[1:]), scales, int(zero[0][1:]) if zero else None)

    @classmethod
    def common(cls, formats: Collection[Affine]) -> Affine:
        """The narrowest format that holds tensors of all these formats exactly.

        Implied biases stay implied if one zero serves all; otherwise biases are stored, in float32, where -zero · scale
        is exact.
        """
        if len(set(formats)) == 1:
            return next(iter(formats))
        bits, group = max(f.bits for f in formats), min(f.group for f in formats)
        scales = {f.scales for f in formats}
        zeros = [f.zero for f in formats if f.zero is not None]
        zero = max(zeros, default=0)
        shared = len(zeros) == len(formats) and all((1 << f.bits) + zero - (f.zero or 0) <= 1 << bits for f in formats)
        kept = len(scales) == 1 and (shared or not zeros)
        return cls(bits, group, scales.pop() if kept else "f32", zero if shared else None)

    def data_bytes(self, columns: int) -> int:
        """Bytes of a row's packed values."""
        return columns * self.bits // 8

    def meta_bytes(self, columns: int) -> int:
        """Bytes of a row's scales and biases."""
        return columns // self.group * SCALES[self.scales] * (2 if self.zero is None else 1)

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row."""
        return self.data_bytes(columns) + self.meta_bytes(columns)

    def pack_meta(self, scales: npt.NDArray[Any], biases: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Row bytes of scales and biases [rows, groups], given as floats or (for bf16) as uint16 bits."""

        def stored(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            if self.scales == "bf16" and values.dtype != np.uint16:
                return narrow_bf16(values)
            return values.astype(NUMPY[self.scales], copy=False)

        s = stored(scales)
        pairs = s if self.zero is not None else np.stack([s, stored(biases)], axis=-1).reshape(len(s), -1)
        return np.ascontiguousarray(pairs).view(np.uint8)
