"""The submit gate: the only place that submits, waits and maps.

``queue.submit`` on a lost device, an invalid command buffer, a destroyed buffer or a mapped staging buffer does not
raise: it aborts the process. So the gate checks everything first, under one lock, and submits directly after a
``finish`` that succeeded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

from llamagpu.errors import DeviceLostError, KernelError, LlamaGPUError
from llamagpu.gpu import native
from llamagpu.gpu.ledger import Buffer

SPIN_SECONDS = 0.002  # polling time before the first sleep; 0 on a software adapter, which computes on the same cores
DEADLINE_SECONDS = 300.0


class Slot:
    """A staging buffer for results: free, in flight, or mapped while it is read."""

    def __init__(self, buffer: Buffer):
        self.buffer = buffer
        self.mapped = False
        self.answer: list[int] = []  # the status of the mapping in progress
        self.callback: Any = None  # made once, see Gate.read
        self.done: Any = None


class Gate:
    """Submits command encoders and reads results back, for one device.

    Attributes:
        canary: a live buffer; see ``_probe``.
    """

    def __init__(self, handle: Any, spin: bool = True):
        self._handle = handle
        self._spin = SPIN_SECONDS if spin else 0.0
        self._lock = threading.Lock()
        self._heard = native.error_log.count
        self._failure: Exception | None = None
        self._written: set[Buffer] = set()
        self.submissions = 0
        self.canary: Buffer | None = None

    def check(self) -> None:
        """Raises if the device is lost or an error was logged for it; submitting after that would abort."""
        if self._failure is not None:
            raise self._failure
        if native.error_log.count == self._heard:
            return
        message, self._heard = native.error_log.last, native.error_log.count
        try:
            self._probe()
        except (DeviceLostError, KernelError) as e:
            self._failure = e if isinstance(e, DeviceLostError) else native.lost(str(e))
            raise self._failure from e
        if "lost" not in message.lower():  # "lost" is about another device, as this one still works
            self._failure = KernelError("The driver reported an error outside of any call.", message)
            raise self._failure

    def lost(self) -> bool:
        """Whether the device is lost; asks the driver."""
        if self._failure is None:
            try:
                self._probe()
            except DeviceLostError as e:
                self._failure = e
            except KernelError:
                return False
        return isinstance(self._failure, native.Lost)

    def _probe(self) -> None:
        """Raise if the device is lost. A write of no bytes makes no object, and takes less than a microsecond."""
        with native.errors("checking the device"):
            if native.has_raw and self.canary is not None:
                queue, buffer = self._handle.queue._internal, self.canary.handle._internal
                native.libf.wgpuQueueWriteBuffer(queue, buffer, 0, native.ffi.NULL, 0)
                return
            self._handle.create_buffer(size=16, usage=native.BufferUsage.COPY_DST).destroy()

    def fail(self, error: Exception) -> None:
        """Refuse everything from now on with this error."""
        self._failure = self._failure or error

    def write(self, buffer: Buffer, offset: int, data: Any) -> None:
        """Queue bytes for a buffer; they go out with the next submission."""
        with self._lock:
            self.check()
            buffer.require_live("it was written")
            with native.errors("writing a buffer"):
                self._handle.queue.write_buffer(buffer.handle, offset, data)
            self._written.add(buffer)

    def destroy(self, buffer: Buffer) -> None:
        """Destroy a buffer. Submits a queued write to it first: submitting that afterwards would abort."""
        if buffer in self._written and self._failure is None:
            try:
                self.submit(self._handle.create_command_encoder(), ())
            except (LlamaGPUError, native.wgpu.GPUError):
                pass  # nothing more will be submitted
        buffer.handle.destroy()

    def submit(self, encoder: Any, buffers: Iterable[Buffer], slot: Slot | None = None) -> None:
        """Finish and submit one encoder whose commands touch ``buffers`` and copy into ``slot``."""
        with self._lock:
            self.check()
            if slot is not None and slot.mapped:
                raise KernelError("A staging buffer is still mapped.", "Its last result is still being read.")
            for buffer in (*buffers, *((slot.buffer,) if slot else ())):
                buffer.require_live("the commands that use it ran")
            try:
                with native.errors("finishing a command buffer"):
                    command_buffer = encoder.finish()
            except DeviceLostError as e:
                self._failure = e
                raise
            self._handle.queue.submit([command_buffer])
            self._written.clear()
            self.submissions += 1

    def read(self, slot: Slot, size: int) -> bytes:
        """Wait for the submission that fills ``slot``; returns its first ``size`` bytes.

        Raises:
            DeviceLostError: the device is lost, or did not answer within the deadline.
        """
        self.check()
        if native.has_raw:
            return self._read_raw(slot, size)
        with native.errors("reading results"):
            slot.buffer.handle.map_sync(native.wgpu.MapMode.READ)
            slot.mapped = True
            data = bytes(slot.buffer.handle.read_mapped(0, size))
            slot.buffer.handle.unmap()
        slot.mapped = False
        return data

    def _read_raw(self, slot: Slot, size: int) -> bytes:
        ffi, libf = native.ffi, native.libf
        answer = slot.answer  # the callback refers to this list only: the slot would make a cycle that holds the device
        answer.clear()
        if slot.callback is None:

            @ffi.callback("void(WGPUMapAsyncStatus, WGPUStringView, void *, void *)")  # type: ignore[untyped-decorator]
            def done(status: int, message: Any, one: Any, two: Any) -> None:
                answer.append(status)

            slot.callback = ffi.new("WGPUBufferMapCallbackInfo *")
            slot.callback.mode, slot.callback.callback = native.lib.WGPUCallbackMode_AllowProcessEvents, done
            slot.done = done  # cffi does not keep it
        buffer = slot.buffer.handle._internal
        with native.errors("reading results"):
            libf.wgpuBufferMapAsync(buffer, native.lib.WGPUMapMode_Read, 0, size, slot.callback[0])
            self._poll_until(answer)
            if answer[0] != native.lib.WGPUMapAsyncStatus_Success:
                self.check()
                self.fail(native.lost(f"mapping a result failed with status {answer[0]}"))
                self.check()
            self._probe()  # the library aborts if the device was lost while the mapping was pending
            slot.mapped = True
            data = bytes(ffi.buffer(libf.wgpuBufferGetMappedRange(buffer, 0, size), size))
            libf.wgpuBufferUnmap(buffer)
        slot.mapped = False
        return data

    def _poll_until(self, answer: list[int]) -> None:
        """Poll without waiting inside the driver, where Python would see neither Ctrl-C nor a deadline."""
        start = time.perf_counter()
        pause = 0.00005
        while not answer:
            native.libf.wgpuDevicePoll(self._handle._internal, False, native.ffi.NULL)
            waited = time.perf_counter() - start
            if answer or waited < self._spin:
                continue
            if waited > DEADLINE_SECONDS:
                self.fail(native.lost(f"it did not answer for {DEADLINE_SECONDS:.0f} seconds"))
            self.check()
            time.sleep(pause)
            pause = min(pause * 1.2, 0.002)
