"""Tensors on the GPU: rows of one dtype, each row padded with zeros to 16 bytes, cut by rows where a binding ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llamagpu.gpu.affine import Affine
from llamagpu.gpu.dtypes import ITEM_SIZE, NUMPY, Array, narrow_bf16, widen_bf16
from llamagpu.gpu.ledger import Buffer

if TYPE_CHECKING:
    from llamagpu.gpu.device import Device

ROW_ALIGN = 16
STREAMS = 32  # of a woven tensor


def row_items(columns: int, dtype: str) -> int:
    """Items a row takes with its padding: a multiple of 16 bytes."""
    per = ROW_ALIGN // ITEM_SIZE[dtype]
    return -(-columns // per) * per


def held_rows(rows: int, woven: bool) -> int:
    """Rows that a part takes room for: of a woven one an even number in every stream."""
    return -(-rows // (2 * STREAMS)) * 2 * STREAMS if woven else rows


def woven_order(rows: int) -> npt.NDArray[np.int64]:
    """Where the rows of a woven part lie (``lib/order/woven.wgsl``)."""
    n = np.arange(rows)
    return n % STREAMS * (held_rows(rows, True) // STREAMS) + n // STREAMS


@dataclass(frozen=True)
class Part:
    """Rows ``first`` to ``first + rows`` of a tensor: a window of one buffer. ``tail`` bytes of guard follow the rows
    inside the window (tests only)."""

    buffer: Buffer
    offset: int
    size: int
    first: int
    rows: int
    tail: int = 0


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of shape [..., columns]; all axes but the last are rows.

    ``stride`` is the items from a row to the next. Most tensors have one part; weights above the device's binding
    limit have more. A quantised tensor has the dtype ``affine``; ``meta`` has the scales and biases of each part. The
    rows of a ``woven`` one (weights) lie in another order, see ``woven_order``.
    """

    device: Device
    shape: tuple[int, ...]
    dtype: str
    parts: tuple[Part, ...]
    affine: Affine | None = None
    meta: tuple[Part, ...] = ()
    woven: bool = False

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def stride(self) -> int:
        return row_items(self.columns, self.dtype) if self.affine is None else self.columns

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, padding, scales and biases included."""
        return self.stride * ITEM_SIZE[self.dtype] if self.affine is None else self.affine.row_bytes(self.columns)

    @property
    def loads(self) -> int:
        """Loads of 16 bytes (of 8, where groups of 16 in 4 bits need it) from a row of weights to the next."""
        small = self.affine is not None and (self.affine.bits, self.affine.group) == (4, 16)
        return self.data_bytes // (8 if small else ROW_ALIGN)

    @property
    def data_bytes(self) -> int:
        """Bytes of a row, padding included, without scales and biases."""
        if self.affine is None:
            return self.stride * ITEM_SIZE[self.dtype]
        return self.affine.data_bytes(self.columns)

    @property
    def nbytes(self) -> int:
        """Bytes held, padding included."""
        return sum(p.size for p in (*self.parts, *self.meta))

    @property
    def part(self) -> Part:
        """The only part. Kernels that take whole tensors ask for it."""
        (part,) = self.parts
        return part

    def numpy(self) -> Array:
        """The values on the host, without padding; bf16 comes as float32."""
        return self.device.download(self)

    def write(self, values: Array) -> None:
        """Overwrite all values, from an array of the same shape."""
        self.device.upload(self, values)

    def head(self, rows: int) -> Tensor:
        """The first ``rows`` rows as a tensor [rows, columns] over the same memory."""
        part = self.part
        size = rows * self.stride * ITEM_SIZE[self.dtype]
        return Tensor(self.device, (rows, self.columns), self.dtype, (Part(part.buffer, part.offset, size, 0, rows),))

    def free(self) -> None:
        """Give the memory back. Using the tensor afterwards raises."""
        for part in (*self.parts, *self.meta):
            self.device.free(part.buffer)


def pack_rows(values: Array, dtype: str) -> npt.NDArray[np.uint8]:
    """An array [..., columns] as padded row bytes [rows, stride · item size]."""
    columns = values.shape[-1]
    data = np.ascontiguousarray(values).reshape(-1, columns)
    if dtype == "bf16" and data.dtype != np.uint16:
        data = narrow_bf16(data)
    data = np.ascontiguousarray(data.astype(NUMPY[dtype], copy=False))
    stride = row_items(columns, dtype)
    if stride != columns:
        padded = np.zeros((data.shape[0], stride), data.dtype)
        padded[:, :columns] = data
        data = padded
    return data.view(np.uint8).reshape(data.shape[0], -1)


def unpack_rows(raw: bytes, shape: tuple[int, ...], dtype: str) -> Array:
    """The inverse of ``pack_rows``; bf16 comes as float32."""
    data = np.frombuffer(raw, NUMPY[dtype]).reshape(-1, row_items(shape[-1], dtype))[:, : shape[-1]]
    out: Array = widen_bf16(data) if dtype == "bf16" else data.copy()
    return out.reshape(shape)
