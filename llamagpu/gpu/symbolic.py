"""A device without a GPU: it records kernels for other machines, and keeps what is written to its buffers in a file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from llamagpu.errors import KernelError
from llamagpu.gpu.adapter import DEFAULT_LIMITS, Adapter
from llamagpu.gpu.ledger import Buffer, Ledger, Part
from llamagpu.gpu.memory import Memory
from llamagpu.gpu.plan import Call
from llamagpu.gpu.recorder import Recorder
from llamagpu.gpu.tuning import Tuning

T = TypeVar("T")


@dataclass(frozen=True)
class Recording:
    """Recorded kernel calls, which this machine does not run."""

    calls: tuple[Call, ...]

    def free(self) -> None:
        """Nothing is held."""


class SymbolicMemory(Memory):
    """Buffers within WebGPU's default limits, as regions of a temporary file. ``written`` are those that anything was
    written to; the others are zero."""

    def __init__(self) -> None:
        self.ledger, self.generation = Ledger(), 0
        self.adapter = Adapter(0, "WebGPU's default limits", "other", "WebGPU", "", None)
        self.max_binding = DEFAULT_LIMITS["max-storage-buffer-binding-size"]
        self.max_buffer = DEFAULT_LIMITS["max-buffer-size"]
        self.max_workgroups = DEFAULT_LIMITS["max-compute-workgroups-per-dimension"]
        self.written: dict[Buffer, None] = {}
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - destroy closes it
        self._end = 0

    def call(self, fn: Callable[[], T]) -> T:
        return fn()

    def allocate(self, size: int, purpose: str) -> Buffer:
        self.check_buffer(size, purpose)
        begin, self._end = self._end, self._end + size
        self._file.truncate(self._end)
        return self.ledger.add(Buffer(begin, size, purpose))

    def free(self, buffer: Buffer) -> None:
        if not buffer.freed:
            self.ledger.remove(buffer)
            self.written.pop(buffer, None)

    def write(self, buffer: Buffer, offset: int, data: Any) -> None:
        raw = memoryview(data).cast("B")
        if offset + raw.nbytes > buffer.size:
            raise KernelError(f"{raw.nbytes} bytes at {offset} do not fit a buffer of {buffer.size} bytes.")
        self._file.seek(buffer.handle + offset)
        self._file.write(raw)
        self.written[buffer] = None

    def finish(self) -> None:
        pass  # everything is written at once

    def read(self, part: Part) -> bytes:
        self._file.seek(part.buffer.handle + part.offset)
        return self._file.read(part.size)

    def destroy(self) -> None:
        self._file.close()


class SymbolicDevice(Recorder[Recording]):
    """Records kernels within WebGPU's default limits, with any tuning. It runs none."""

    memory: SymbolicMemory

    def __init__(self) -> None:
        super().__init__(Tuning())
        self.memory = SymbolicMemory()
        self.ledger = self.memory.ledger

    def close(self) -> None:
        """Delete the contents of all buffers."""
        self.memory.destroy()

    def _run(self, call: Call) -> None:
        raise KernelError(f"{call.program.label} cannot run here.", "A symbolic device only records kernels.")

    def _recorded(self, calls: list[Call]) -> Recording:
        return Recording(tuple(calls))
