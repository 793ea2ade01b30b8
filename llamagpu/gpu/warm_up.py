"""Compiling programs before their first use, one by one and between other work."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from functools import partial

from llamagpu.gpu.device import Device
from llamagpu.gpu.memory import UPLOAD_BYTES
from llamagpu.gpu.plan import Call, Plan
from llamagpu.gpu.thread import wait


class WarmUp:
    """Compiles the programs of kernel calls ahead of the plans that will run them.

    A GPU's driver compiles when a pipeline is made, a software driver at the first dispatch, on a thread of its own. So
    the device thread makes each pipeline and dispatches it once, over the call's buffers and with no workgroups: that
    compiles everything and runs nothing. The caller's thread prepares uploads meanwhile.

    A software driver that compiles holds up every later submission, and so the uploads' waits. There, the programs that
    the next ``UPLOAD_BYTES`` of uploads have time for are submitted together, right after a wait.

    Args:
        calls: in the order of their first use. Programs that the device has compiled before take no time.
        trusted: as the plans that will run them.
    """

    def __init__(self, device: Device, calls: Iterable[Call], trusted: bool):
        self._device, self._trusted = device, trusted
        first: dict[object, Call] = {}
        for call in calls:
            first.setdefault(call.program, call)
        self._calls, self._queued = list(first.values()), list[Future[None]]()
        self._due, self._submissions = 0, -1  # of the device, after the last programs
        self._ahead = UPLOAD_BYTES if device.adapter.kind == "software" else 0

    def advance(self, done: int, total: int) -> None:
        """Queue the programs that are due once the caller has uploaded ``done`` of ``total`` bytes.

        Raises:
            KernelError: a program that was due before does not compile.
            DeviceLostError: the device was lost, or is closed.
        """
        for future in self._queued:
            if future.done():
                future.result()
        if self._ahead and done < total and self._submissions == self._device.memory.gate.submissions:
            return
        begin, n = self._due, len(self._calls)
        self._due = max(begin, min(n, n * (done + self._ahead) // total + 1))
        if calls := self._calls[begin : self._due]:
            compile = partial(self._compile, calls)
            if self._device.thread.inside:  # it cannot wait for itself
                compile()
            else:
                self._queued.append(self._device.thread.post(compile))

    def finish(self) -> None:
        """Queue the rest, and wait until all pipelines are made.

        Raises:
            KernelError: a program does not compile; the message names the shader file and line.
            DeviceLostError: the device was lost, or is closed.
        """
        self.advance(1, 1)
        for future in self._queued:
            wait(future)

    def _compile(self, calls: list[Call]) -> None:
        """Compile the programs of calls, on the device thread."""
        device = self._device
        new = [call for call in calls if not device.pipelines.has(call.program, self._trusted)]
        for call in new:
            device.pipelines.get(call.program, self._trusted)  # its errors come before a plan allocates
        if new:
            plan = Plan(device.memory, device.pipelines, new, self._trusted)
            plan.compile()
            plan.free()
        self._submissions = device.memory.gate.submissions
