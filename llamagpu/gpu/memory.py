"""Buffers and tensors of a device: allocated through the ledger, written and read through the gate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from llamagpu.errors import KernelError, OutOfMemoryError
from llamagpu.gpu import native
from llamagpu.gpu.adapter import Adapter
from llamagpu.gpu.affine import Affine
from llamagpu.gpu.dtypes import ITEM_SIZE, Array, host_array
from llamagpu.gpu.gate import Gate
from llamagpu.gpu.ledger import Buffer, Ledger
from llamagpu.gpu.staging import Staging
from llamagpu.gpu.tensor import STREAMS, Part, Tensor, held_rows, pack_rows, row_items, unpack_rows, woven_order
from llamagpu.gpu.thread import DeviceThread

if TYPE_CHECKING:
    from llamagpu.gpu.device import Device

T = TypeVar("T")
UPLOAD_ROWS = 64  # slices of an upload begin at multiples
UPLOAD_BYTES = 64_000_000  # host memory that uploads may hold before they are waited for


class Memory:
    """What a ``Device`` can do with memory; it sets the fields."""

    adapter: Adapter
    handle: Any
    ledger: Ledger
    gate: Gate
    staging: Staging
    thread: DeviceThread
    fence: Buffer
    max_binding: int
    max_buffer: int
    _pending_upload = 0

    def call(self, fn: Callable[[], T]) -> T:
        """Run ``fn`` on the device thread and return its result."""
        return self.thread.call(fn)

    def encoder(self) -> Any:
        """A new command encoder, on the device thread."""
        self.gate.check()
        with native.errors("making a command encoder"):
            return self.handle.create_command_encoder()

    def allocate(self, size: int, purpose: str) -> Buffer:
        """A zeroed buffer of ``size`` bytes, entered in the ledger.

        Raises:
            OutOfMemoryError: it passes the device's buffer limit, the memory that is free, or the driver refused.
        """
        if size > self.max_buffer:
            raise OutOfMemoryError(
                f"A buffer of {size / 1e6:,.1f} MB for {purpose} passes this adapter's limit.",
                f"{self.adapter} allows {self.max_buffer / 1e6:,.1f} MB a buffer.",
                "Use a smaller context or a smaller dtype.",
            )
        self.ledger.check(size, purpose)
        usage = native.BufferUsage
        if purpose == "staging":
            flags = usage.COPY_DST | usage.MAP_READ
        elif purpose == "queries":
            flags = usage.COPY_SRC | usage.QUERY_RESOLVE
        else:
            flags = usage.COPY_SRC | usage.COPY_DST | (usage.UNIFORM if purpose == "params" else usage.STORAGE)

        def make() -> Any:
            with native.errors(f"allocating {size / 1e6:,.1f} MB for {purpose}"):
                return self.handle.create_buffer(size=size, usage=flags)

        return self.ledger.add(Buffer(self.call(make), size, purpose))

    def free(self, buffer: Buffer) -> None:
        """Destroy a buffer at once. Freeing twice is harmless."""

        def destroy() -> None:
            if not buffer.freed:
                self.ledger.remove(buffer)
                self.gate.destroy(buffer)

        if not buffer.freed:
            self.call(destroy)

    def empty(
        self, shape: tuple[int, ...], dtype: str = "f32", *, purpose: str = "data", tail: int = 0, woven: bool = False
    ) -> Tensor:
        """A zeroed tensor, cut by rows into as many parts as the binding limit asks for.

        Args:
            shape: at least one axis; the last one is the columns.
            dtype: ``f32``, ``f16``, ``bf16`` or ``u32``.
            tail: guard bytes behind the rows, inside the binding (for tests).
            woven: whether the rows lie in the order that suits ``product_rows``.
        """
        if not shape or min(shape) < 1:
            raise KernelError(f"A tensor cannot have the shape {shape}.", "Every axis is at least 1.")
        rows, row_bytes = math.prod(shape[:-1]), row_items(shape[-1], dtype) * ITEM_SIZE[dtype]
        most = (min(self.max_binding, self.max_buffer) - tail) // row_bytes
        unit = 2 * STREAMS if woven else 4  # products take four rows together
        most = most // unit * unit or most
        if most == 0:
            raise OutOfMemoryError(
                f"One row of {row_bytes / 1e6:,.1f} MB passes the adapter's binding limit.",
                f"{self.adapter} allows {self.max_binding / 1e6:,.1f} MB a binding.",
                "Use a smaller dtype.",
            )
        self.ledger.check(rows * row_bytes, purpose)
        parts = []
        for first in range(0, rows, most):
            count = min(most, rows - first)
            size = held_rows(count, woven) * row_bytes + tail
            parts.append(Part(self.allocate(size, purpose), 0, size, first, count, tail))
            if tail:
                self.write_bytes(parts[-1].buffer, size - tail, b"\xff" * tail)
        return Tensor(cast("Device", self), shape, dtype, tuple(parts), woven=woven)

    def empty_affine(
        self,
        rows: int,
        columns: int,
        affine: Affine,
        *,
        purpose: str = "weights",
        tail: int = 0,
        woven: bool = False,
    ) -> Tensor:
        """A zeroed quantised tensor [rows, columns]; the groups must divide the columns. ``upload_rows`` fills it."""
        if columns % affine.group:
            raise KernelError(f"Groups of {affine.group} do not divide {columns} columns.")
        data, meta = affine.data_bytes(columns), affine.meta_bytes(columns)
        unit = 2 * STREAMS if woven else 4  # products take four rows together
        most = (min(self.max_binding, self.max_buffer) - tail) // data // unit * unit
        self.ledger.check(rows * (data + meta), purpose)
        windows: tuple[list[Part], list[Part]] = ([], [])
        for first in range(0, rows, most):
            count = min(most, rows - first)
            for found, row_bytes in zip(windows, (data, meta), strict=True):
                size = max(16, -(-held_rows(count, woven) * row_bytes // 16) * 16) + tail
                found.append(Part(self.allocate(size, purpose), 0, size, first, count, tail))
                if tail:
                    self.write_bytes(found[-1].buffer, size - tail, b"\xff" * tail)
        return Tensor(
            cast("Device", self), (rows, columns), "affine", tuple(windows[0]), affine, tuple(windows[1]), woven
        )

    def tensor(
        self, values: Any, dtype: str | None = None, *, purpose: str = "data", tail: int = 0, woven: bool = False
    ) -> Tensor:
        """A tensor with the values of an array (or list). ``dtype`` defaults to the array's: float64 becomes f32."""
        array = host_array(values, dtype)
        if dtype is None:
            dtype = {"float16": "f16", "uint32": "u32", "int64": "u32", "int32": "u32"}.get(array.dtype.name, "f32")
        out = self.empty(array.shape or (1,), dtype, purpose=purpose, tail=tail, woven=woven)
        self.upload(out, array)
        return out

    def windows(self, arrays: list[Array], *, purpose: str = "data") -> list[Tensor]:
        """Small float32 vectors side by side in one buffer, each at an offset that a binding may start at."""
        sizes = [row_items(a.shape[-1], "f32") * 4 for a in arrays]
        offsets = np.cumsum([0] + [-(-s // 256) * 256 for s in sizes]).tolist()
        buffer = self.allocate(max(256, offsets[-1]), purpose)
        out = []
        for array, size, offset in zip(arrays, sizes, offsets, strict=False):
            self.write_bytes(buffer, offset, pack_rows(array.reshape(1, -1), "f32").tobytes())
            part = Part(buffer, offset, size, 0, 1)
            out.append(Tensor(cast("Device", self), (array.shape[-1],), "f32", (part,)))
        return out

    def upload(self, tensor: Tensor, values: Any) -> None:
        """Overwrite a tensor; bfloat16 takes uint16 bits or floats, which it rounds to nearest."""
        array = np.asarray(values)
        if array.shape != tensor.shape and array.size != math.prod(tensor.shape):
            raise KernelError(f"Values of shape {array.shape} do not fit a tensor of shape {tensor.shape}.")
        flat = array.reshape(-1, tensor.columns)
        row_bytes = tensor.stride * ITEM_SIZE[tensor.dtype]
        step = max(1, UPLOAD_BYTES // 4 // row_bytes // UPLOAD_ROWS) * UPLOAD_ROWS
        for first in range(0, tensor.rows, step):
            rows = pack_rows(flat[first : first + step], tensor.dtype)
            self.upload_rows(tensor.parts, first, rows, tensor.woven)

    def upload_rows(self, parts: tuple[Part, ...], first: int, packed: Array, woven: bool = False) -> None:
        """Write row bytes (uint8 [n, bytes of a row]) from row ``first`` on; see ``pack_rows``, ``Affine.pack_meta``.

        Slices come in ascending order and begin at multiples of ``UPLOAD_ROWS``.
        """
        row_bytes, streams = packed.shape[1], STREAMS if woven else 1
        for part in parts:
            begin, end = max(first, part.first), min(first + len(packed), part.first + part.rows)
            per_stream = held_rows(part.rows, woven) // streams
            for stream in range(min(streams, max(0, end - begin))):
                data = np.ascontiguousarray(packed[begin - first + stream : end - first : streams]).reshape(-1)
                if data.size % 4:  # 16-bit scales: what is padded belongs to the rows that come next
                    data = np.pad(data, (0, -data.size % 4))
                row = stream * per_stream + (begin - part.first) // streams
                self.write_bytes(part.buffer, part.offset + row * row_bytes, data)

    def write_bytes(self, buffer: Buffer, offset: int, data: Any) -> None:
        """Queue a write; after every 64 MB it waits, so that the driver's copies do not pile up in host memory."""

        def write() -> None:
            self.gate.write(buffer, offset, data)
            self._pending_upload += memoryview(data).nbytes
            if self._pending_upload >= UPLOAD_BYTES:
                self.finish()

        self.call(write)

    def finish(self) -> None:
        """Wait until everything submitted so far is done."""

        def wait() -> None:
            slot = self.staging.take(16)
            encoder = self.encoder()
            encoder.copy_buffer_to_buffer(self.fence.handle, 0, slot.buffer.handle, 0, 16)
            self.gate.submit(encoder, (), slot)
            self.gate.read(slot, 16)
            self.staging.give(slot)
            self._pending_upload = 0

        self.call(wait)

    def download(self, tensor: Tensor) -> Array:
        """A tensor's values on the host (bf16 widened to float32), without padding and guard."""
        whole = [self.read_part(p)[: p.size - p.tail] for p in tensor.parts]
        if not tensor.woven:
            return unpack_rows(b"".join(whole), tensor.shape, tensor.dtype)
        shape = (-1, tensor.stride * ITEM_SIZE[tensor.dtype])
        rows = [
            np.frombuffer(b, np.uint8).reshape(shape)[woven_order(p.rows)]
            for b, p in zip(whole, tensor.parts, strict=True)
        ]
        return unpack_rows(np.concatenate(rows).tobytes(), tensor.shape, tensor.dtype)

    def read_part(self, part: Part) -> bytes:
        """The bytes of a window, guard included."""

        def read() -> bytes:
            slot = self.staging.take(part.size)
            encoder = self.encoder()
            encoder.copy_buffer_to_buffer(part.buffer.handle, part.offset, slot.buffer.handle, 0, part.size)
            self.gate.submit(encoder, (part.buffer,), slot)
            data = self.gate.read(slot, part.size)
            self.staging.give(slot)
            return data

        return self.call(read)

    def copy(self, source: Part, target: Part) -> None:
        """Copy a window's bytes to another of the same size, by the driver's own copy."""

        def run() -> None:
            encoder = self.encoder()
            ends = (source.buffer.handle, source.offset, target.buffer.handle, target.offset)
            encoder.copy_buffer_to_buffer(*ends, source.size)
            self.gate.submit(encoder, (source.buffer, target.buffer))

        self.call(run)
