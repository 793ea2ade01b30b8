"""Compiling programs before their first use, one by one and between other work."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from functools import partial

from llamagpu.gpu.device import Device
from llamagpu.gpu.plan import Call, Plan
from llamagpu.gpu.thread import wait


class WarmUp:
    """Compiles the programs of kernel calls ahead of the plans that will run them.

    A GPU's driver compiles when a pipeline is made, a software driver at the first dispatch, on a thread of its own. So
    the device thread makes each pipeline and dispatches it once, over the call's buffers and with no workgroups: that
    compiles everything and runs nothing. The caller's thread prepares uploads meanwhile. An upload waits for what was
    queued before it, so programs are queued as the caller's own work advances, and never all at once.

    Args:
        calls: in the order of their first use. Programs that the device has compiled before take no time.
        trusted: as the plans that will run them.
    """

    def __init__(self, device: Device, calls: Iterable[Call], trusted: bool):
        self._device, self._trusted = device, trusted
        first: dict[object, Call] = {}
        for call in calls:
            first.setdefault(call.program, call)
        self._calls, self._due, self._queued = list(first.values()), 0, list[Future[None]]()

    def advance(self, done: float) -> None:
        """Queue the programs that are due once a share ``done`` of the caller's work is done.

        Raises:
            KernelError: a program that was due before does not compile.
            DeviceLostError: the device was lost, or is closed.
        """
        for future in self._queued:
            if future.done():
                future.result()
        before, self._due = self._due, max(self._due, min(len(self._calls), int(done * len(self._calls)) + 1))
        for call in self._calls[before : self._due]:
            if self._device.thread.inside:  # it cannot wait for itself
                self._compile(call)
            else:
                self._queued.append(self._device.thread.post(partial(self._compile, call)))

    def finish(self) -> None:
        """Queue the rest, and wait until all pipelines are made.

        Raises:
            KernelError: a program does not compile; the message names the shader file and line.
            DeviceLostError: the device was lost, or is closed.
        """
        self.advance(1.0)
        for future in self._queued:
            wait(future)

    def _compile(self, call: Call) -> None:
        """Compile the program of a call, on the device thread."""
        device = self._device
        if not device.pipelines.has(call.program, self._trusted):
            device.pipelines.get(call.program, self._trusted)  # its errors come before a plan allocates
            plan = Plan(device.memory, device.pipelines, [call], self._trusted)
            plan.compile()
            plan.free()
