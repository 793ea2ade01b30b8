"""A device: opened and closed, its tensors, its kernels and recorded plans."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numpy as np

from llamagpu.errors import DeviceLostError, KernelError, OutOfMemoryError, Unique
from llamagpu.gpu.adapter import Adapter, same_adapter
from llamagpu.gpu.affine import Affine
from llamagpu.gpu.dtypes import ITEM_SIZE, Array, dtype_name, host_array
from llamagpu.gpu.events import Event, require_timestamps
from llamagpu.gpu.ledger import Buffer, Ledger, Part
from llamagpu.gpu.limits import memory_limit
from llamagpu.gpu.linker import Program
from llamagpu.gpu.memory import Memory
from llamagpu.gpu.pipelines import Pipelines
from llamagpu.gpu.plan import Call, Plan, checked_call
from llamagpu.gpu.recovery import Recovery
from llamagpu.gpu.tensor import WOVEN_ROWS, Tensor, allocated_rows, pack_rows, row_items
from llamagpu.gpu.thread import DeviceThread
from llamagpu.gpu.tuning import SUBGROUP, ReadTuning, Tuning, default_tuning
from llamagpu.gpu.tuning_store import stored_tuning

T = TypeVar("T")


class _Kernels(threading.local):
    """State of each thread's kernel calls: their tuning, and the calls recorded so far (None outside a recording)."""

    tuning: Tuning | None = None
    recorded: list[Call] | None = None


class Device(Unique):
    """An open GPU device. Use it from any thread; close it, or use it as a context manager.

    Attributes:
        memory: its buffers; ``ledger`` counts them.
        features: the optional features that were requested and granted.
        recovery: opens it again after a loss.
        measured: whether the default tuning was measured on this adapter.
        subgroup_size: counted on the device; 0 where lanes are not contiguous or subgroups are missing.

    Make one with ``llamagpu.gpu.open``.
    """

    def __init__(
        self,
        adapter: Adapter,
        reason: str,
        *,
        baseline: bool = False,
        limit: int | str | None = None,
        recover: bool = True,
    ):
        self.adapter, self.reason, self._baseline = adapter, reason, baseline
        handle, self.features = adapter.request_device(baseline)
        self.ledger = Ledger(memory_limit(adapter, limit))
        self.recovery = Recovery(recover)
        self.thread = DeviceThread(self.recovery.handle)
        try:
            self._set_up(handle, baseline)
        except BaseException:
            self.thread.close()
            raise
        self.recovery.watch(self)

    def _set_up(self, handle: Any, baseline: bool) -> None:
        adapter = self.adapter
        self.memory = Memory(handle, adapter, self.ledger, self.thread)
        self.pipelines = Pipelines(handle)
        self._kernels = _Kernels()
        self._closed = False
        self._default, self.measured = Tuning(), False
        self.subgroup_size = self._count_subgroup() if SUBGROUP in self.features else 0
        stored = None if baseline else stored_tuning(adapter, self.features, self.subgroup_size)
        self._default = stored or default_tuning(adapter.kind, self.features, self.subgroup_size)
        self.measured = stored is not None

    def __repr__(self) -> str:
        return f"<Device {self.adapter}{' closed' if self._closed else ''}>"

    # --- lifetime ---------------------------------------------------------------------------

    def close(self) -> None:
        """Finish queued work and free everything. Later use raises DeviceLostError."""
        if self._closed:
            return
        self._closed = True
        try:
            self.thread.call(self._destroy)
        except DeviceLostError:
            pass  # already gone
        self.thread.close()

    def _destroy(self) -> None:
        self.memory.gate.fail(DeviceLostError("The device is closed.", "", "Open it again to use it."))
        self.pipelines.clear()
        self.memory.destroy()

    def reopen(self) -> None:
        """Open the adapter again after a loss, on the device thread. All buffers, plans and pipelines are gone.

        Raises:
            NoAdapterError: the adapter is not there any more.
            DeviceLostError: the driver did not open it, or it has changed.
        """
        self.pipelines.clear()
        self.memory.reopen(self._request_again)
        self.pipelines = Pipelines(self.memory.handle)

    def _request_again(self) -> tuple[Any, Adapter]:
        self.adapter = same_adapter(self.adapter)
        handle, features = self.adapter.request_device(self._baseline)
        if features != self.features:
            raise DeviceLostError("The adapter has other features now.", ", ".join(sorted(features ^ self.features)))
        return handle, self.adapter

    def call(self, fn: Callable[[], T]) -> T:
        """Run ``fn`` on the device thread and return its result."""
        return self.thread.call(fn)

    def synchronize(self) -> None:
        """Wait until all queued work is done. No result needs it: the queue orders writes, kernels, runs and reads."""
        self.memory.finish()

    def event(self) -> Event:
        """A point in the queue that can be timed by the GPU's clock.

        Raises:
            KernelError: the device has no timestamp queries.
        """
        require_timestamps(self.features, self.adapter)
        return Event(self.memory)

    def _count_subgroup(self) -> int:
        """Size of a subgroup, counted because drivers report a range; 0 if its lanes are not contiguous."""
        out = self.empty((64,), "u32")
        self.dispatch(Program("subgroup_size"), 1, {}, {"out": out.part})
        sizes = out.numpy()
        out.free()
        return int(sizes[0]) if (sizes == sizes[0]).all() else 0

    # --- tensors ----------------------------------------------------------------------------

    def empty(
        self, shape: tuple[int, ...], dtype: Any = "f32", *, purpose: str = "data", tail: int = 0, woven: bool = False
    ) -> Tensor:
        """A zeroed tensor, cut by rows into as many parts as the binding limit requires.

        Args:
            shape: at least one axis; the last one is the columns.
            dtype: ``f32``, ``f16``, ``bf16`` or ``u32``, or their long names.
            tail: guard bytes after the rows, inside the binding (for tests).
            woven: whether the rows are woven (see ``tensor.woven_order``).
        """
        if not shape or min(shape) < 1:
            raise KernelError(f"A tensor cannot have the shape {shape}.", "Every axis is at least 1.")
        dtype = dtype_name(dtype)
        rows, row_bytes = math.prod(shape[:-1]), row_items(shape[-1], dtype) * ITEM_SIZE[dtype]
        self.ledger.check(rows * row_bytes, purpose)
        counts = self._rows_of_parts(rows, row_bytes, tail, woven)
        parts = tuple(self._part(first, n, row_bytes, purpose, tail, woven) for first, n in counts)
        return Tensor(self, shape, dtype, parts, woven=woven)

    def empty_affine(
        self, rows: int, columns: int, affine: Affine, *, purpose: str = "weights", tail: int = 0, woven: bool = False
    ) -> Tensor:
        """A zeroed quantized tensor [rows, columns]; the group size must divide the columns."""
        if columns % affine.group:
            raise KernelError(f"Groups of {affine.group} do not divide {columns} columns.")
        data, meta = affine.data_bytes(columns), affine.meta_bytes(columns)
        self.ledger.check(rows * (data + meta), purpose)
        counts = self._rows_of_parts(rows, data, tail, woven)
        parts, metas = (
            tuple(self._part(first, n, size, purpose, tail, woven) for first, n in counts) for size in (data, meta)
        )
        return Tensor(self, (rows, columns), "affine", parts, affine, metas, woven)

    def _rows_of_parts(self, rows: int, row_bytes: int, tail: int, woven: bool) -> list[tuple[int, int]]:
        """First row and number of rows of each part."""
        most = (self.memory.largest_binding - tail) // row_bytes
        unit = 2 * WOVEN_ROWS if woven else 4  # products take four rows together
        most = most // unit * unit or most
        if most == 0:
            raise OutOfMemoryError(
                f"One row of {row_bytes / 1e6:,.1f} MB exceeds the adapter's binding limit.",
                f"{self.adapter} allows {self.memory.max_binding / 1e6:,.1f} MB in one binding.",
                "Use a smaller dtype.",
            )
        return [(first, min(most, rows - first)) for first in range(0, rows, most)]

    def _part(self, first: int, rows: int, row_bytes: int, purpose: str, tail: int, woven: bool) -> Part:
        size = max(16, -(-allocated_rows(rows, woven) * row_bytes // 16) * 16) + tail
        part = Part(self.memory.allocate(size, purpose), 0, size, first, rows, tail)
        if tail:
            self.memory.write(part.buffer, size - tail, b"\xff" * tail)
        return part

    def tensor(
        self, values: Any, dtype: Any = None, *, purpose: str = "data", tail: int = 0, woven: bool = False
    ) -> Tensor:
        """A tensor with the values of an array or list. ``dtype`` defaults to the array's: float64 becomes f32."""
        name = None if dtype is None else dtype_name(dtype)
        array = host_array(values, name)
        if name is None:
            name = {"float16": "f16", "uint32": "u32", "int64": "u32", "int32": "u32"}.get(array.dtype.name, "f32")
        out = self.empty(array.shape or (1,), name, purpose=purpose, tail=tail, woven=woven)
        out.write(array)
        return out

    def windows(self, arrays: list[Array], *, purpose: str = "data") -> list[Tensor]:
        """Small float32 vectors side by side in one buffer, each at an offset where a binding may start."""
        sizes = [row_items(a.shape[-1], "f32") * 4 for a in arrays]
        offsets = np.cumsum([0] + [-(-s // 256) * 256 for s in sizes]).tolist()
        buffer = self.memory.allocate(max(256, offsets[-1]), purpose)
        out = []
        for array, size, offset in zip(arrays, sizes, offsets, strict=False):
            self.memory.write(buffer, offset, pack_rows(array.reshape(1, -1), "f32").tobytes())
            out.append(Tensor(self, (array.shape[-1],), "f32", (Part(buffer, offset, size, 0, 1),)))
        return out

    def free(self, buffer: Buffer) -> None:
        """Destroy a buffer at once. Freeing twice is harmless."""
        self.memory.free(buffer)

    # --- kernels ----------------------------------------------------------------------------

    @property
    def tuning(self) -> Tuning:
        """The tuning of kernels called now by this thread: of the recording in progress, of ``using``, or the
        default."""
        return self._kernels.tuning or self._default

    @contextmanager
    def using(self, tuning: Tuning | ReadTuning) -> Iterator[None]:
        """Kernels called by this thread inside the block take this tuning. Other threads are not affected."""
        before, self._kernels.tuning = self._kernels.tuning, cast(Tuning, tuning)
        try:
            yield
        finally:
            self._kernels.tuning = before

    def dispatch(
        self,
        program: Program,
        groups: int,
        params: Mapping[str, float],
        bindings: Mapping[str, Part],
        work: int = 0,
        reads: int = 0,
    ) -> None:
        """Queue a kernel, or add it to the plan being recorded.

        Args:
            groups: the number of workgroups, folded into two dimensions if it exceeds the limit of one.
            params: values for every field of the shader's ``struct Params``.
            bindings: a window for every storage variable, by its name in the shader.
            work: multiply-adds, for pacing long plans and for profiles.
            reads: bytes of weights or cache that it reads, for profiles.

        Raises:
            KernelError: params or bindings are missing or unknown, or an output shares a buffer with another binding.
        """
        call = checked_call(program, groups, params, bindings, work, reads)
        if self._kernels.recorded is not None:
            self._kernels.recorded.append(call)
            return
        trusted = self.tuning.trusted

        def run() -> None:
            plan = Plan(self.memory, self.pipelines, [call], trusted)
            plan.run()
            plan.free()

        self.call(run)

    def record(self, forward: Callable[[], object], tuning: Tuning | None = None) -> Plan:
        """Record the kernels that ``forward`` calls as a plan, without running them.

        The plan keeps the tuning it was recorded with: ``tuning``, or the one of the calling thread.
        """
        kernels = self._kernels
        if kernels.recorded is not None:
            raise KernelError("A plan is being recorded already.")
        with self.using(tuning or self.tuning):
            calls = kernels.recorded = []
            try:
                forward()
            finally:
                kernels.recorded = None
            trusted = self.tuning.trusted
        return self.call(lambda: Plan(self.memory, self.pipelines, calls, trusted))
