"""Tensors on the GPU: rows of one dtype, each padded with zeros to 16 bytes. Large ones have several parts of rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llamagpu.errors import KernelError
from llamagpu.gpu.affine import Affine
from llamagpu.gpu.dtypes import ITEM_SIZE, NUMPY, Array, narrow_bf16, widen_bf16
from llamagpu.gpu.ledger import Part
from llamagpu.gpu.linker import Program
from llamagpu.gpu.memory import UPLOAD_BYTES, Memory
from llamagpu.gpu.readback import Readback
from llamagpu.gpu.tuning import Tuning

ROW_ALIGN = 16
WOVEN_ROWS = 32  # rows of a woven tensor that are read side by side (lib/order/woven.wgsl)
UPLOAD_ROWS = 64  # slices of an upload begin at multiples of this


def row_items(columns: int, dtype: str) -> int:
    """Items of a row with its padding: a multiple of 16 bytes."""
    per = ROW_ALIGN // ITEM_SIZE[dtype]
    return -(-columns // per) * per


def allocated_rows(rows: int, woven: bool) -> int:
    """Rows allocated: woven parts are padded to a multiple of 64."""
    return -(-rows // (2 * WOVEN_ROWS)) * 2 * WOVEN_ROWS if woven else rows


def tensor_bytes(rows: int, columns: int, dtype: str = "f32", woven: bool = False) -> int:
    """Bytes that ``Device.empty`` allocates for a float or integer tensor."""
    return max(16, allocated_rows(rows, woven) * row_items(columns, dtype) * ITEM_SIZE[dtype])


def affine_bytes(rows: int, columns: int, affine: Affine, woven: bool = False) -> int:
    """Bytes that ``Device.empty_affine`` allocates, if one binding holds the tensor."""
    sizes = (affine.data_bytes(columns), affine.meta_bytes(columns))
    return sum(max(16, -(-allocated_rows(rows, woven) * size // 16) * 16) for size in sizes)


def woven_order(rows: int) -> npt.NDArray[np.int64]:
    """Index in memory of each row of a woven part (``lib/order/woven.wgsl``)."""
    n = np.arange(rows)
    return n % WOVEN_ROWS * (allocated_rows(rows, True) // WOVEN_ROWS) + n // WOVEN_ROWS


class Owner(Protocol):
    """The methods of a device that tensors and kernels use."""

    memory: Memory

    @property
    def tuning(self) -> Tuning:
        """The tuning of the recording in progress, or of the calling thread."""

    def dispatch(
        self,
        program: Program,
        groups: int,
        params: Mapping[str, float],
        bindings: Mapping[str, Part],
        work: int = 0,
        reads: int = 0,
    ) -> None:
        """See ``Device.dispatch``."""

    def empty(self, shape: tuple[int, ...], dtype: str = "f32", *, purpose: str = "data") -> Tensor:
        """See ``Device.empty``."""

    def empty_affine(self, rows: int, columns: int, affine: Affine) -> Tensor:
        """See ``Device.empty_affine``."""


@dataclass(frozen=True, eq=False, repr=False)
class Tensor:
    """A tensor of shape [..., columns]; all axes but the last are rows. ``Device.tensor`` and ``Device.empty`` make
    them.

    Kernel calls and writes are queued; ``numpy`` waits for them.

    Most tensors have one part. Weights larger than a binding of the device have more. A quantized tensor has the dtype
    ``affine``, and ``meta`` holds the scales and biases of each part. Woven weights store their rows in another order,
    see ``woven_order``.
    """

    device: Owner
    shape: tuple[int, ...]
    dtype: str
    parts: tuple[Part, ...]
    affine: Affine | None = None
    meta: tuple[Part, ...] = ()
    woven: bool = False

    def __repr__(self) -> str:
        return f"<Tensor {list(self.shape)} {self.affine or self.dtype} on {self.device.memory.adapter.name}>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        values = self.numpy()
        return values if dtype is None else values.astype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        """Consecutive rows as a tensor [rows, columns] over the same memory: ``x[2:5]``, ``x[:4]``."""
        if not isinstance(rows, slice):
            raise KernelError(f"A tensor cannot be indexed by {rows!r}.", "Use a slice of rows, such as x[2:5].")
        begin, end, step = rows.indices(self.rows)
        if step != 1 or end <= begin:
            raise KernelError(
                f"A slice {begin}:{end}:{step} is not possible.", "It must be consecutive rows, not empty."
            )
        return self.rows_between(begin, end)

    @property
    def rows(self) -> int:
        """Rows: the product of all axes but the last."""
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Elements of a row."""
        return self.shape[-1]

    @property
    def stride(self) -> int:
        """Items from one row to the next."""
        return row_items(self.columns, self.dtype) if self.affine is None else self.columns

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, with padding, scales and biases."""
        return self.stride * ITEM_SIZE[self.dtype] if self.affine is None else self.affine.row_bytes(self.columns)

    @property
    def loads(self) -> int:
        """Loads of 16 bytes (8 bytes for groups of 16 in 4 bits) from one row of weights to the next."""
        small = self.affine is not None and (self.affine.bits, self.affine.group) == (4, 16)
        return self.data_bytes // (8 if small else ROW_ALIGN)

    @property
    def data_bytes(self) -> int:
        """Bytes of a row with padding, without scales and biases."""
        if self.affine is None:
            return self.stride * ITEM_SIZE[self.dtype]
        return self.affine.data_bytes(self.columns)

    @property
    def nbytes(self) -> int:
        """Bytes held, padding included."""
        return sum(p.size for p in (*self.parts, *self.meta))

    @property
    def part(self) -> Part:
        """The only part.

        Raises:
            KernelError: the tensor has several parts or is quantized; only products and look-ups take such weights.
        """
        if len(self.parts) != 1 or self.affine is not None:
            raise KernelError(f"{self!r} cannot be used here.", "The kernel takes a tensor in one unquantized part.")
        return self.parts[0]

    def numpy(self) -> Array:
        """The values on the host, after all queued work; bf16 becomes float32.

        Raises:
            KernelError: the tensor is quantized; ``kernels.dequantize`` widens it.
        """
        self._refuse_quantized()
        memory = self.device.memory
        return self._unpack([memory.read(p)[: p.size - p.tail] for p in self.parts])

    def numpy_async(self) -> Readback:
        """As ``numpy``, but only queues the copy: ``result()`` waits for the values, and so does ``await``. They are
        those of this point of the queue, whatever is written later.

        Raises:
            KernelError: the tensor is quantized.
        """
        self._refuse_quantized()
        return Readback(self.device.memory, self.parts, self._unpack)

    def _refuse_quantized(self) -> None:
        if self.affine is not None:
            raise KernelError(f"{self!r} is quantized.", "", "Use kernels.dequantize(tensor).numpy().")

    def _unpack(self, whole: list[bytes]) -> Array:
        """The values from the bytes of every part."""
        if not self.woven:
            return unpack_rows(b"".join(whole), self.shape, self.dtype)
        shape = (-1, self.stride * ITEM_SIZE[self.dtype])
        rows = [
            np.frombuffer(b, np.uint8).reshape(shape)[woven_order(p.rows)]
            for b, p in zip(whole, self.parts, strict=True)
        ]
        return unpack_rows(np.concatenate(rows).tobytes(), self.shape, self.dtype)

    def write(self, values: Any) -> None:
        """Overwrite all values, from an array of the same shape. bf16 takes uint16 bits, or floats that it rounds."""
        array = np.asarray(values)
        if array.shape != self.shape and array.size != math.prod(self.shape):
            raise KernelError(f"Values of shape {array.shape} do not fit a tensor of shape {self.shape}.")
        flat = array.reshape(-1, self.columns)
        row_bytes = self.stride * ITEM_SIZE[self.dtype]
        step = max(1, UPLOAD_BYTES // 4 // row_bytes // UPLOAD_ROWS) * UPLOAD_ROWS
        for first in range(0, self.rows, step):
            self.write_rows(first, pack_rows(flat[first : first + step], self.dtype))

    def write_rows(self, first: int, packed: Array) -> None:
        """Write row bytes (uint8 [n, bytes of a row], see ``pack_rows``) from row ``first`` on.

        Slices come in ascending order and begin at multiples of ``UPLOAD_ROWS``.
        """
        self._write(self.parts, first, packed)

    def write_meta(self, first: int, packed: Array) -> None:
        """The same for scales and biases (``Affine.pack_meta``)."""
        self._write(self.meta, first, packed)

    def _write(self, parts: tuple[Part, ...], first: int, packed: Array) -> None:
        row_bytes, weave = packed.shape[1], WOVEN_ROWS if self.woven else 1
        for part in parts:
            begin, end = max(first, part.first), min(first + len(packed), part.first + part.rows)
            apart = allocated_rows(part.rows, self.woven) // weave
            for lane in range(min(weave, max(0, end - begin))):
                data = np.ascontiguousarray(packed[begin - first + lane : end - first : weave]).reshape(-1)
                if data.size % 4:  # 16-bit scales; the next rows overwrite the padding
                    data = np.pad(data, (0, -data.size % 4))
                row = lane * apart + (begin - part.first) // weave
                self.device.memory.write(part.buffer, part.offset + row * row_bytes, data)

    def head(self, rows: int) -> Tensor:
        """The first ``rows`` rows as a tensor [rows, columns] over the same memory."""
        return self.rows_between(0, rows)

    def rows_between(self, begin: int, end: int) -> Tensor:
        """Rows ``begin`` to ``end`` as a tensor over the same memory; row ``begin`` lies at a multiple of 256 bytes."""
        if self.woven:
            raise KernelError(f"{self!r} cannot be sliced.", "Its rows are woven: they do not follow one another.")
        part, row_bytes = self.part, self.stride * ITEM_SIZE[self.dtype]
        offset = part.offset + begin * row_bytes
        if offset % 256:
            raise KernelError(
                f"Row {begin} of {self!r} cannot begin a slice.",
                f"It lies at byte {offset}; bindings begin at multiples of 256.",
                f"Copy the rows with kernels.slice_rows(x, {begin}, {end}), or slice at another row.",
            )
        window = Part(part.buffer, offset, (end - begin) * row_bytes, 0, end - begin)
        return Tensor(self.device, (end - begin, self.columns), self.dtype, (window,))

    def free(self) -> None:
        """Give the memory back. Using the tensor afterwards raises."""
        for part in (*self.parts, *self.meta):
            self.device.memory.free(part.buffer)


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
    """The inverse of ``pack_rows``; bf16 becomes float32."""
    data = np.frombuffer(raw, NUMPY[dtype]).reshape(-1, row_items(shape[-1], dtype))[:, : shape[-1]]
    out: Array = widen_bf16(data) if dtype == "bf16" else data.copy()
    return out.reshape(shape)
