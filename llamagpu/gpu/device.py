"""A device: its limits, its buffers, its pipelines. Everything that touches wgpu runs on its own thread."""

from __future__ import annotations

import atexit
import math
import struct
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from llamagpu.errors import DeviceLostError, KernelError, OutOfMemoryError
from llamagpu.gpu import native
from llamagpu.gpu.adapter import Adapter, choose_adapter
from llamagpu.gpu.affine import Affine
from llamagpu.gpu.dtypes import ITEM_SIZE, Array, host_array
from llamagpu.gpu.gate import Gate
from llamagpu.gpu.ledger import Buffer, Ledger, memory_limit
from llamagpu.gpu.linker import Program, link
from llamagpu.gpu.pipelines import Pipelines
from llamagpu.gpu.plan import Call, Plan
from llamagpu.gpu.staging import Staging
from llamagpu.gpu.tensor import STREAMS, Part, Tensor, held_rows, pack_rows, row_items, unpack_rows, woven_order
from llamagpu.gpu.thread import DeviceThread
from llamagpu.gpu.tuning import SHADER_F16, SUBGROUP, Tuning, default_tuning

T = TypeVar("T")
UPLOAD_ROWS = 64  # slices of an upload begin at multiples
UPLOAD_BYTES = 64_000_000  # host memory that uploads may hold before they are waited for
_WANTED_FEATURES = (SHADER_F16, SUBGROUP, "timestamp-query", "timestamp-query-inside-passes")
# WebGPU's defaults: every kernel keeps within them, so they are all that is asked for but for buffer sizes.
_BASELINE = {
    "max-bind-groups": 4,
    "max-storage-buffers-per-shader-stage": 8,
    "max-uniform-buffers-per-shader-stage": 12,
    "max-uniform-buffer-binding-size": 65536,
    "max-storage-buffer-binding-size": 134217728,
    "max-buffer-size": 268435456,
    "min-uniform-buffer-offset-alignment": 256,
    "min-storage-buffer-offset-alignment": 256,
    "max-compute-workgroup-storage-size": 16384,
    "max-compute-invocations-per-workgroup": 256,
    "max-compute-workgroup-size-x": 256,
    "max-compute-workgroup-size-y": 256,
    "max-compute-workgroup-size-z": 64,
    "max-compute-workgroups-per-dimension": 65535,
}
_open_devices: weakref.WeakSet[Device] = weakref.WeakSet()


class Device:
    """An open GPU device. Use it from any thread; close it, or use it as a context manager.

    ``ledger`` knows the memory held, ``tuning`` the kernel variants in use, ``features`` what was requested and got.
    Make one with ``llamagpu.gpu.open``.
    """

    def __init__(self, adapter: Adapter, reason: str, *, baseline: bool = False, limit: int | None = None):
        self.adapter, self.reason = adapter, reason
        features = [] if baseline else [f for f in _WANTED_FEATURES if f in adapter.handle.features]
        limits = dict(_BASELINE)
        if not baseline:
            for key in ("max-storage-buffer-binding-size", "max-buffer-size"):
                limits[key] = adapter.handle.limits[key]
        with native.errors("opening the device"):
            self.handle = adapter.handle.request_device_sync(required_features=features, required_limits=limits)
        self.features = frozenset(features)
        self.max_binding: int = min(self.handle.limits["max-storage-buffer-binding-size"], 2**32 - 4)
        self.max_buffer: int = self.handle.limits["max-buffer-size"]
        self.max_workgroups: int = self.handle.limits["max-compute-workgroups-per-dimension"]
        self.ledger = Ledger(memory_limit(adapter.kind) if limit is None else limit)
        self.gate = Gate(self.handle, spin=adapter.kind != "software")
        self.thread = DeviceThread()
        self.pipelines = Pipelines(self.handle)
        self.staging = Staging(self)
        self._recorder: list[Call] | None = None
        self._pending_upload = 0
        self._closed = False
        self.fence = self.allocate(16, "fence")
        self.tuning = Tuning()
        _open_devices.add(self)
        self.subgroup_size = self._count_subgroup() if SUBGROUP in self.features else 0
        self.tuning = default_tuning(adapter.kind, self.features, self.subgroup_size)

    def __enter__(self) -> Device:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Device {self.adapter}{' closed' if self._closed else ''}>"

    # --- lifetime ---------------------------------------------------------------------------

    def call(self, fn: Callable[[], T]) -> T:
        """Run ``fn`` on the device thread and return its result."""
        return self.thread.call(fn)

    def close(self) -> None:
        """Free everything. What is queued is finished first; later use raises DeviceLostError."""
        if self._closed:
            return
        self._closed = True
        try:
            self.thread.call(self._destroy)
        except DeviceLostError:
            pass  # already gone
        self.thread.close()

    def _destroy(self) -> None:
        self.gate.fail(DeviceLostError("The device is closed.", "", "Open it again to use it."))
        for buffer in self.ledger.live():
            self.free(buffer)
        self.pipelines.clear()
        self.handle.destroy()

    def _count_subgroup(self) -> int:
        """Invocations of a subgroup, counted as drivers report a range; 0 where they are no neighbours."""
        out = self.empty((64,), "u32")
        self.dispatch(Program("subgroup_size"), 1, {}, {"out": out.part})
        sizes = out.numpy()
        out.free()
        return int(sizes[0]) if (sizes == sizes[0]).all() else 0

    # --- memory -----------------------------------------------------------------------------

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
        return Tensor(self, shape, dtype, tuple(parts), woven=woven)

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
        return Tensor(self, (rows, columns), "affine", tuple(windows[0]), affine, tuple(windows[1]), woven)

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
            out.append(Tensor(self, (array.shape[-1],), "f32", (part,)))
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

    # --- kernels ----------------------------------------------------------------------------

    def fold(self, groups: int) -> tuple[int, int]:
        """Workgroups as (x, y) within the limit for one dimension; kernels read ``y · X + x`` and leave the rest."""
        y = -(-groups // self.max_workgroups)
        x = -(-groups // y)
        if y > self.max_workgroups or groups < 1:
            raise KernelError(f"{groups} workgroups cannot be dispatched.")
        return x, y

    def encoder(self) -> Any:
        self.gate.check()
        with native.errors("making a command encoder"):
            return self.handle.create_command_encoder()

    def dispatch(
        self,
        program: Program,
        groups: int,
        params: Mapping[str, float],
        bindings: Mapping[str, Part],
        work: int = 0,
        reads: int = 0,
    ) -> None:
        """Run a kernel now, or add it to the plan being recorded.

        Args:
            groups: workgroups, counted linearly; folded where a dimension's limit is passed.
            params: values for every field of the shader's ``struct Params``.
            bindings: a window for every storage variable, by its name in the shader.
            work: multiply-adds, for pacing long plans and for profiles.
            reads: bytes of weights or cache that it reads, for profiles.
        """
        linked = link(program)
        if set(params) != {name for name, _ in linked.params}:
            raise KernelError(f"{program.label}: params {sorted(params)} do not match {linked.params}.")
        names = {b.name for b in linked.bindings if b.kind != "uniform"}
        if names != set(bindings):
            raise KernelError(f"{program.label}: bindings {sorted(names ^ set(bindings))} are missing or not known.")
        codes = {"u32": "I", "i32": "i", "f32": "f"}
        packed = b"".join(struct.pack("<" + codes[kind], params[name]) for name, kind in linked.params)
        padded = packed.ljust(-(-len(packed) // 16) * 16, b"\0")
        call = Call(program, groups, padded, dict(bindings), work, reads)

        def run() -> None:
            if self._recorder is not None:
                self._recorder.append(call)
                return
            plan = Plan(self, [call])
            plan.run()
            plan.free()

        self.call(run)

    def record(self, forward: Callable[[], object]) -> Plan:
        """Call ``forward``; the kernels that it calls become a plan instead of running."""

        def make() -> Plan:
            if self._recorder is not None:
                raise KernelError("A plan is being recorded already.")
            calls: list[Call] = []
            self._recorder = calls
            try:
                forward()
            finally:
                self._recorder = None
            return Plan(self, calls)

        return self.call(make)


def open_device(device: str | Device = "auto", *, baseline: bool = False, memory_limit: int | None = None) -> Device:
    """Open an adapter (see ``choose_adapter``); a Device is returned as it is.

    Args:
        baseline: request WebGPU's default limits and no features, as a test of portability.
        memory_limit: bytes that buffers may take together; the default is what the machine has free.

    Raises:
        NoAdapterError: no adapter matches.
        DeviceLostError: the driver did not open it.
    """
    if isinstance(device, Device):
        return device
    adapter, reason = choose_adapter(device)
    return Device(adapter, reason, baseline=baseline, limit=memory_limit)


@atexit.register
def _close_all() -> None:
    for device in list(_open_devices):
        device.close()
