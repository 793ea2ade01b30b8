"""What real and symbolic devices have in common: they make tensors, and record the kernels that are called."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np

from llamagpu.errors import KernelError, OutOfMemoryError
from llamagpu.gpu.affine import Affine
from llamagpu.gpu.dtypes import ITEM_SIZE, Array, dtype_name, host_array
from llamagpu.gpu.ledger import Buffer, Ledger, Part
from llamagpu.gpu.linker import Program
from llamagpu.gpu.memory import Memory
from llamagpu.gpu.plan import Call, checked_call
from llamagpu.gpu.tensor import WOVEN_ROWS, Tensor, allocated_rows, pack_rows, row_items
from llamagpu.gpu.tuning import ReadTuning, Tuning


class Recorded(Protocol):
    """Recorded kernel calls: a ``Plan`` on a real device."""

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls, in order."""

    def free(self) -> None:
        """Free what the recording holds; the tensors belong to their makers."""


R = TypeVar("R", bound=Recorded, covariant=True)


class _Kernels(threading.local):
    """State of each thread's kernel calls: their tuning, and the calls recorded so far (None outside a recording)."""

    tuning: Tuning | None = None
    recorded: list[Call] | None = None


class Recorder(Generic[R]):
    """Makes tensors in its memory, and records kernel calls as an R. The base of all devices.

    Attributes:
        memory: its buffers; ``ledger`` counts them.
    """

    memory: Memory
    ledger: Ledger

    def __init__(self, tuning: Tuning) -> None:
        self._kernels, self._default = _Kernels(), tuning

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
                f"{self.memory.adapter} allows {self.memory.max_binding / 1e6:,.1f} MB in one binding.",
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

    def synchronize(self) -> None:
        """Wait until all queued work is done. No result needs it: the queue orders writes, kernels, runs and reads."""
        self.memory.finish()

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
        else:
            self._run(call)

    def record(self, forward: Callable[[], object], tuning: Tuning | None = None) -> R:
        """Record the kernels that ``forward`` calls, without running them.

        The recording keeps the tuning it was made with: ``tuning``, or the one of the calling thread.
        """
        with self.using(tuning or self.tuning):
            return self._recorded(self.calls(forward))

    def calls(self, forward: Callable[[], object], tuning: Tuning | None = None) -> list[Call]:
        """The kernel calls of ``forward``, as ``record`` takes them, without running or compiling them."""
        kernels = self._kernels
        if kernels.recorded is not None:
            raise KernelError("A plan is being recorded already.")
        with self.using(tuning or self.tuning):
            calls = kernels.recorded = []
            try:
                forward()
            finally:
                kernels.recorded = None
            return calls

    def _run(self, call: Call) -> None:
        """Queue a kernel that is not recorded."""
        raise NotImplementedError

    def _recorded(self, calls: list[Call]) -> R:
        """Recorded calls; the tuning is that of the recording."""
        raise NotImplementedError
