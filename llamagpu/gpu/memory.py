"""The buffers of a device: allocated through the ledger, written, copied and read through the gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from llamagpu.errors import OutOfMemoryError
from llamagpu.gpu import native
from llamagpu.gpu.adapter import Adapter
from llamagpu.gpu.gate import Gate, Slot
from llamagpu.gpu.ledger import Buffer, Ledger, Part, lost_values
from llamagpu.gpu.thread import DeviceThread

T = TypeVar("T")
UPLOAD_BYTES = 64_000_000  # host memory that queued uploads may hold
_KEPT_SLOTS = 8
_KEPT_SLOT_BYTES = 65536  # larger staging buffers are freed at once


class Memory:
    """The memory of one open device. Any thread may call it; the work runs on the device thread.

    Attributes:
        generation: how often the device was lost and opened again.
    """

    def __init__(self, handle: Any, adapter: Adapter, ledger: Ledger, thread: DeviceThread):
        self.ledger, self.thread, self.generation = ledger, thread, 0
        self._open(handle, adapter)

    def _open(self, handle: Any, adapter: Adapter) -> None:
        self.handle, self.adapter = handle, adapter
        limits = handle.limits
        self.max_binding: int = min(limits["max-storage-buffer-binding-size"], 2**32 - 4)
        self.max_buffer: int = limits["max-buffer-size"]
        self.max_workgroups: int = limits["max-compute-workgroups-per-dimension"]
        self.gate = Gate(handle, spin=adapter.kind != "software")
        self._slots: list[Slot] = []
        self._pending_upload = 0
        self._fence = self.gate.canary = self.allocate(16, "fence")

    @property
    def largest_binding(self) -> int:
        """Bytes that one binding of one buffer can hold."""
        return min(self.max_binding, self.max_buffer)

    def call(self, fn: Callable[[], T]) -> T:
        """Run ``fn`` on the device thread and return its result."""
        return self.thread.call(fn)

    def encoder(self) -> Any:
        """A new command encoder, on the device thread."""
        self.gate.check()
        with native.errors("making a command encoder"):
            return self.handle.create_command_encoder()

    def check_buffer(self, size: int, purpose: str) -> None:
        """Raises OutOfMemoryError if ``size`` exceeds the limit of one buffer."""
        if size > self.max_buffer:
            raise OutOfMemoryError(
                f"A buffer of {size / 1e6:,.1f} MB for {purpose} exceeds this adapter's limit.",
                f"{self.adapter} allows {self.max_buffer / 1e6:,.1f} MB in one buffer.",
                "Use a smaller context or a smaller dtype.",
            )

    def allocate(self, size: int, purpose: str) -> Buffer:
        """A zeroed buffer of ``size`` bytes, entered in the ledger.

        Raises:
            OutOfMemoryError: the size exceeds the device's buffer limit or the free memory, or the driver refused.
        """
        self.check_buffer(size, purpose)
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

    def write(self, buffer: Buffer, offset: int, data: Any) -> None:
        """Queue a write. After every 64 MB it waits, so that the driver's copies do not pile up in host memory."""

        def write() -> None:
            self.gate.write(buffer, offset, data)
            self._pending_upload += memoryview(data).nbytes
            if self._pending_upload >= UPLOAD_BYTES:
                self.finish()

        self.call(write)

    def finish(self) -> None:
        """Wait until everything submitted so far is done."""

        def wait() -> None:
            encoder = self.encoder()
            slot = self.copy_fence(encoder)
            self.gate.submit(encoder, (), slot)
            self.wait_fence(slot)
            self._pending_upload = 0

        self.call(wait)

    def copy_fence(self, encoder: Any) -> Slot:
        """Append a small copy to the encoder's commands; ``wait_fence`` waits for it. On the device thread."""
        slot = self.take_slot(16)
        encoder.copy_buffer_to_buffer(self._fence.handle, 0, slot.buffer.handle, 0, 16)
        return slot

    def wait_fence(self, slot: Slot) -> None:
        """Wait until the device has reached a submitted fence. On the device thread."""
        self.gate.read(slot, 16)
        self.give_slot(slot)

    def read(self, part: Part) -> bytes:
        """The bytes of a window, guard included."""

        return self.call(lambda: self.read_slot(self.copy_out(part), part.size))

    def copy_out(self, part: Part) -> Slot:
        """Queue a copy of a window to a staging buffer; ``read_slot`` waits for it. On the device thread."""
        part.buffer.require_live("it was read")
        slot = self.take_slot(part.size)
        encoder = self.encoder()
        encoder.copy_buffer_to_buffer(part.buffer.handle, part.offset, slot.buffer.handle, 0, part.size)
        self.gate.submit(encoder, (part.buffer,), slot)
        return slot

    def read_slot(self, slot: Slot, size: int) -> bytes:
        """Wait for a slot, take its first ``size`` bytes, and give it back. On the device thread."""
        slot.buffer.require_live("it was read")
        data = self.gate.read(slot, size)
        self.give_slot(slot)
        return data

    def copy(self, source: Part, target: Part) -> None:
        """Copy a window's bytes to another of the same size, by the driver's own copy."""

        def run() -> None:
            for part in (source, target):
                part.buffer.require_live("it was copied")
            encoder = self.encoder()
            ends = (source.buffer.handle, source.offset, target.buffer.handle, target.offset)
            encoder.copy_buffer_to_buffer(*ends, source.size)
            self.gate.submit(encoder, (source.buffer, target.buffer))

        self.call(run)

    def take_slot(self, size: int) -> Slot:
        """A staging buffer of at least ``size`` bytes; give it back after reading. On the device thread."""
        for i, slot in enumerate(self._slots):
            if size <= slot.buffer.size:
                return self._slots.pop(i)
        return Slot(self.allocate(size, "staging"))

    def give_slot(self, slot: Slot) -> None:
        """Take a staging buffer back. On the device thread."""
        if slot.buffer.size > _KEPT_SLOT_BYTES or len(self._slots) >= _KEPT_SLOTS:
            self.free(slot.buffer)
        else:
            self._slots.append(slot)

    def reopen(self, request: Callable[[], tuple[Any, Adapter]]) -> None:
        """Replace a lost device by that of ``request``. All buffers are lost. On the device thread."""
        for buffer in self.ledger.live():
            buffer.lost = True
        self.destroy()
        self.generation += 1
        self._open(*request())

    def require(self, generation: int) -> None:
        """Refuse what was made for a device that was lost since then.

        Raises:
            DeviceLostError: ``generation`` is not the present one.
        """
        if generation != self.generation:
            raise lost_values()

    def destroy(self) -> None:
        """Free every buffer and the device; later use raises the gate's error. On the device thread."""
        for buffer in self.ledger.live():
            self.free(buffer)
        self._slots.clear()
        native.destroy_device(self.handle)
