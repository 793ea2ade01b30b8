"""Timing of recorded plans: by GPU timestamps if the GPU has them, otherwise by the host's clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from llamagpu.gpu import native
from llamagpu.gpu.device import Device
from llamagpu.gpu.events import TIMESTAMPS
from llamagpu.gpu.plan import Plan

K = TypeVar("K", bound=Hashable)
WARM_SECONDS = 0.5
_SIZE = 256  # alignment of the target when a query set is resolved


class Stopwatch:
    """Times plans on a device, each from the beginning of its first dispatch to the end of its last.

    On software adapters it uses the host's clock and includes the submission: their timestamps come from the host's
    clock anyway, and the figures that a plan is compared with there are timed on the host.
    """

    def __init__(self, device: Device):
        self._device, self._memory = device, device.memory
        self._set = None
        if TIMESTAMPS in device.features and device.adapter.kind != "software":
            with native.errors("making a query set"):
                self._set = device.call(lambda: self._memory.handle.create_query_set(type="timestamp", count=2))
            self._resolved = self._memory.allocate(_SIZE, "queries")
            self._tick = native.timestamp_period(self._memory.handle)

    def seconds(self, plan: Plan) -> float:
        """Wait for all earlier work, run a plan, and return its seconds."""
        if self._set is None:
            return time_once(self._device, lambda: self._device.call(plan.run))
        self._device.synchronize()
        return self._device.call(lambda: self._run(plan))

    def _run(self, plan: Plan) -> float:
        memory, encoder = self._memory, self._memory.encoder()
        with native.errors("timing a plan"):
            writes = {"query_set": self._set, "beginning_of_pass_write_index": 0, "end_of_pass_write_index": 1}
            compute = encoder.begin_compute_pass(timestamp_writes=writes)
            plan.encode(compute)
            compute.end()
            encoder.resolve_query_set(self._set, 0, 2, self._resolved.handle, 0)
        slot = memory.take_slot(_SIZE)
        encoder.copy_buffer_to_buffer(self._resolved.handle, 0, slot.buffer.handle, 0, _SIZE)
        memory.gate.submit(encoder, (*plan.buffers, self._resolved), slot)
        begin, end = np.frombuffer(memory.read_slot(slot, _SIZE), np.uint64)[:2]
        return float(end - begin) * self._tick

    def free(self) -> None:
        """Free the query set and its buffer."""
        if self._set is not None:
            self._memory.free(self._resolved)
            self._device.call(self._set.destroy)


def time_plans(
    device: Device,
    plans: Mapping[K, Plan],
    repeat: int = 5,
    before: Callable[[], object] | None = None,
    warm: float = WARM_SECONDS,
) -> dict[K, float]:
    """Median seconds of each plan by a ``Stopwatch``, see ``time_calls``.

    Args:
        warm: seconds of work before the measurement, because an idle GPU starts at a lower clock.
    """
    watch = Stopwatch(device)
    try:
        if device.adapter.kind != "software":
            _warm_up(device, list(plans.values()), warm, before)
        return _in_turns({name: partial(watch.seconds, plan) for name, plan in plans.items()}, repeat, before)
    finally:
        watch.free()


def time_calls(
    device: Device, calls: Mapping[K, Callable[[], None]], repeat: int, before: Callable[[], object] | None = None
) -> dict[K, float]:
    """Median seconds of the work that each call submits, by the host's clock.

    The calls take turns, so that drift affects all alike. ``before`` runs before each call. The first round compiles
    and does not count.
    """
    return _in_turns({name: partial(time_once, device, call) for name, call in calls.items()}, repeat, before)


def time_once(device: Device, call: Callable[[], None]) -> float:
    """Seconds from a call until the work it submitted is done, without earlier work."""
    device.synchronize()
    start = time.perf_counter()
    call()
    device.synchronize()
    return time.perf_counter() - start


def _warm_up(device: Device, plans: Sequence[Plan], seconds: float, before: Callable[[], object] | None) -> None:
    """Keep the device busy for ``seconds``, with a few milliseconds of work queued at all times."""
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(4):
            for plan in plans:
                if before is not None:
                    before()
                device.call(plan.run)
        device.synchronize()


def _in_turns(
    timed: Mapping[K, Callable[[], float]], repeat: int, before: Callable[[], object] | None
) -> dict[K, float]:
    taken: dict[K, list[float]] = {name: [] for name in timed}
    for round_ in range(repeat + 1):
        for name, measure in timed.items():
            if before is not None:
                before()
            seconds = measure()
            if round_:
                taken[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
