"""Events: points in the queue, with the GPU's own time."""

from __future__ import annotations

import struct
from typing import Any

from llamagpu.errors import KernelError
from llamagpu.gpu import native
from llamagpu.gpu.gate import Slot
from llamagpu.gpu.memory import Memory

TIMESTAMPS = "timestamp-query"
_SIZE = 256  # alignment of the target when a query set is resolved


class Event:
    """A point in the queue, named as torch's: ``record`` puts it there, ``elapsed_time`` reads the time between two.

    Recording does not wait. The time is taken when the GPU has finished all work queued before. ``Device.event`` makes
    one; it may be recorded again, and then holds the newer point.
    """

    def __init__(self, memory: Memory):
        self._memory, self._generation = memory, memory.generation
        with native.errors("making a query set"):
            self._set = memory.call(lambda: memory.handle.create_query_set(type="timestamp", count=2))
        self._resolved = memory.allocate(_SIZE, "queries")
        self._slot = Slot(memory.allocate(_SIZE, "staging"))
        self._tick = native.timestamp_period(memory.handle)
        self._recorded = False
        self._seconds: float | None = None

    def record(self) -> None:
        """Put the event at the end of the queue."""
        self._memory.call(self._record)

    def _record(self) -> None:
        self._memory.require(self._generation)
        encoder = self._memory.encoder()
        with native.errors("recording an event"):
            writes = {"query_set": self._set, "beginning_of_pass_write_index": 0, "end_of_pass_write_index": 1}
            encoder.begin_compute_pass(timestamp_writes=writes).end()
            encoder.resolve_query_set(self._set, 0, 2, self._resolved.handle, 0)
        encoder.copy_buffer_to_buffer(self._resolved.handle, 0, self._slot.buffer.handle, 0, 16)
        self._memory.gate.submit(encoder, (self._resolved,), self._slot)
        self._recorded, self._seconds = True, None

    def synchronize(self) -> None:
        """Wait until the GPU has reached the event.

        Raises:
            KernelError: it was not recorded.
        """
        self._memory.call(self._read)

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds of the GPU's clock from this event to a later one. Waits for both.

        Raises:
            KernelError: one of them was not recorded, or they are on different devices.
        """
        if not isinstance(end, Event) or end._memory is not self._memory:
            raise KernelError("elapsed_time takes an event of the same device.", "", "Make both with device.event().")
        return 1e3 * self._memory.call(lambda: end._read() - self._read())

    def _read(self) -> float:
        """The time in seconds; on the device thread."""
        if not self._recorded:
            raise KernelError("The event was not recorded.", "", "Call its record() first.")
        if self._seconds is None:
            self._slot.buffer.require_live("the event was read")
            ticks = struct.unpack("<QQ", self._memory.gate.read(self._slot, 16))
            self._seconds = ticks[1] * self._tick
        return self._seconds


def require_timestamps(features: frozenset[str], adapter: Any) -> None:
    """Raises KernelError if a device has no timestamp queries."""
    if TIMESTAMPS not in features:
        raise KernelError(
            f"{adapter} has no timestamp queries.",
            "Events hold the GPU's own time.",
            "Take the host's time around device.synchronize() instead.",
        )
