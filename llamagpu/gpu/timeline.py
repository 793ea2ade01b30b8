"""Profiles of a plan: GPU timestamps around its dispatches, and the times of the host's activities."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from llamagpu.errors import KernelError
from llamagpu.gpu import native
from llamagpu.gpu.device import Device
from llamagpu.gpu.encode import Dispatch
from llamagpu.gpu.events import TIMESTAMPS
from llamagpu.gpu.plan import Plan

INSIDE_PASSES = "timestamp-query-inside-passes"
_MOST_QUERIES = 4096  # WebGPU's limit for a query set


@dataclass(frozen=True)
class Span:
    """An activity from ``begin`` to ``end``, in seconds of the host's clock."""

    name: str
    begin: float
    end: float


@dataclass
class Timeline:
    """The dispatches and host activities of one or more runs of a plan.

    Attributes:
        inside: whether timestamps were taken inside one pass; otherwise every dispatch had a pass of its own.
        kernels: (span, dispatch) for every dispatch of each run.
        host: the host's spans: encode, submit, wait.
        uncertainty: seconds by which the device's spans may be shifted against the host's. The clocks are aligned so
            that every run begins after its submission and ends before the host saw its completion.
    """

    inside: bool
    kernels: list[tuple[Span, Dispatch]] = field(default_factory=list)
    host: list[Span] = field(default_factory=list)
    uncertainty: float = 0.0


def profile(device: Device, plan: Plan, runs: int, before: Callable[[], object] | None = None) -> Timeline:
    """Run a plan several times with a timestamp between its dispatches; ``before`` is called before each run.

    Raises:
        KernelError: the device has no timestamp queries, or the plan has more dispatches than a query set holds.
    """
    if TIMESTAMPS not in device.features:
        raise KernelError(f"{device.adapter} has no timestamp queries.", "", "Use the bench command instead.")
    inside = INSIDE_PASSES in device.features
    count = len(plan.dispatches) + 1 if inside else 2 * len(plan.dispatches)
    if count > _MOST_QUERIES:
        why = f"It needs {count} timestamps; a query set holds {_MOST_QUERIES}."
        raise KernelError(f"A plan of {len(plan.dispatches)} dispatches cannot be profiled at once.", why)
    return device.call(lambda: _Profiler(device, plan, count, inside).run(runs, before))


class _Profiler:
    """The query set and the buffers of one profile; on the device thread."""

    def __init__(self, device: Device, plan: Plan, count: int, inside: bool):
        self._device, self._memory, self._plan = device, device.memory, plan
        self._count, self._inside = count, inside
        self._size = -(-count * 8 // 256) * 256
        with native.errors("making a query set"):
            self._set = self._memory.handle.create_query_set(type="timestamp", count=count)
        self._resolved = self._memory.allocate(self._size, "queries")
        self._tick = native.timestamp_period(self._memory.handle)

    def run(self, runs: int, before: Callable[[], object] | None) -> Timeline:
        line = Timeline(self._inside)
        found = []
        try:
            for number in range(runs + 1):  # the first run compiles, and is dropped
                if before is not None:
                    before()
                self._memory.finish()
                host, ticks = self._once()
                if number:
                    found.append((host, ticks))
        finally:
            self._memory.free(self._resolved)
            self._set.destroy()
        # host time = device time + offset: after the submission began, and before the host saw the completion
        low = max(host[1].begin - float(ticks[0]) for host, ticks in found)
        high = min(host[2].end - float(ticks[-1]) for host, ticks in found)
        offset, line.uncertainty = (low + high) / 2, abs(high - low) / 2
        for host, ticks in found:
            line.host += host
            pairs = pairwise(ticks) if self._inside else zip(ticks[::2], ticks[1::2], strict=True)
            for (begin, end), dispatch in zip(pairs, self._plan.dispatches, strict=True):
                line.kernels.append(
                    (Span(dispatch.program.label, float(begin) + offset, float(end) + offset), dispatch)
                )
        return line

    def _once(self) -> tuple[list[Span], Any]:
        memory = self._memory
        times = [time.perf_counter()]
        encoder = memory.encoder()
        with native.errors("profiling a plan"):
            (self._inside_one_pass if self._inside else self._pass_by_pass)(encoder)
            encoder.resolve_query_set(self._set, 0, self._count, self._resolved.handle, 0)
        slot = memory.take_slot(self._size)
        encoder.copy_buffer_to_buffer(self._resolved.handle, 0, slot.buffer.handle, 0, self._size)
        times.append(time.perf_counter())
        memory.gate.submit(encoder, (*self._plan.buffers, self._resolved), slot)
        times.append(time.perf_counter())
        raw = memory.read_slot(slot, self._size)
        times.append(time.perf_counter())
        ticks = np.frombuffer(raw, np.uint64)[: self._count].astype(np.float64) * self._tick
        names = ("encode", "submit", "wait")
        return [Span(name, *pair) for name, pair in zip(names, pairwise(times), strict=True)], ticks

    def _inside_one_pass(self, encoder: Any) -> None:
        compute = encoder.begin_compute_pass()
        for i in range(len(self._plan.dispatches)):
            native.write_timestamp(compute, self._set, i)
            self._plan.encode(compute, i, i + 1)
        native.write_timestamp(compute, self._set, len(self._plan.dispatches))
        compute.end()

    def _pass_by_pass(self, encoder: Any) -> None:
        for i in range(len(self._plan.dispatches)):
            writes = {
                "query_set": self._set,
                "beginning_of_pass_write_index": 2 * i,
                "end_of_pass_write_index": 2 * i + 1,
            }
            compute = encoder.begin_compute_pass(timestamp_writes=writes)
            self._plan.encode(compute, i, i + 1)
            compute.end()
