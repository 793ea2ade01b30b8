"""Recorded dispatches: a forward pass is recorded once for a shape and replayed for every token."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llamagpu.errors import KernelError
from llamagpu.gpu import native
from llamagpu.gpu.encode import Dispatch, Encoder
from llamagpu.gpu.gate import Slot
from llamagpu.gpu.ledger import Buffer, Part
from llamagpu.gpu.linker import Linked, Program, link
from llamagpu.gpu.memory import Memory
from llamagpu.gpu.pipelines import Pipelines

PARAMS_ALIGN = 256  # WebGPU's default offset alignment of a uniform binding
_PARAM_CODES = {"u32": "I", "i32": "i", "f32": "f"}


@dataclass(frozen=True)
class Call:
    """One kernel call as a wrapper states it. ``work`` counts multiply-adds, ``reads`` bytes of weights and cache."""

    program: Program
    groups: int
    params: bytes
    bindings: Mapping[str, Part]
    work: int
    reads: int


def checked_call(
    program: Program, groups: int, params: Mapping[str, float], bindings: Mapping[str, Part], work: int, reads: int
) -> Call:
    """The call that ``Device.dispatch`` describes, its params packed."""
    linked = link(program)
    if set(params) != {name for name, _ in linked.params}:
        raise KernelError(f"{program.label}: params {sorted(params)} do not match {linked.params}.")
    names = {b.name for b in linked.bindings if b.kind != "uniform"}
    if names != set(bindings):
        raise KernelError(f"{program.label}: bindings {sorted(names ^ set(bindings))} are missing or unknown.")
    _refuse_shared_buffers(program, linked, bindings)
    packed = b"".join(struct.pack("<" + _PARAM_CODES[kind], params[name]) for name, kind in linked.params)
    return Call(program, groups, packed.ljust(-(-len(packed) // 16) * 16, b"\0"), dict(bindings), work, reads)


def _refuse_shared_buffers(program: Program, linked: Linked, bindings: Mapping[str, Part]) -> None:
    """Raises KernelError if a binding that the shader writes lies in the buffer of another binding. WebGPU refuses this
    even if the windows do not overlap, but only when the commands are finished, and its error names no binding."""
    for written in (b.name for b in linked.bindings if b.kind == "storage"):
        for other, part in bindings.items():
            if other != written and part.buffer is bindings[written].buffer:
                raise KernelError(
                    f"{program.label}: {written} lies in the buffer of {other}.",
                    "A kernel cannot write to a buffer that it also binds otherwise.",
                    f"Give another tensor for {written}, or copy rows of one with kernels.slice_rows.",
                )


def fold(groups: int, limit: int) -> tuple[int, int]:
    """Workgroups as (x, y), each at most ``limit``. Kernels read ``y · X + x`` and leave surplus workgroups idle."""
    y = -(-groups // limit)
    x = -(-groups // y) if y else 0
    if y > limit or groups < 1:
        raise KernelError(f"{groups} workgroups cannot be dispatched.")
    return x, y


class Plan:
    """A flat list of dispatches over fixed buffers, and the uniform buffer that holds their sizes.

    ``trusted`` drops the shaders' bounds checks. ``work`` counts the multiply-adds of all dispatches, ``calls`` has
    what they were recorded from.
    """

    def __init__(self, memory: Memory, pipelines: Pipelines, calls: Sequence[Call], trusted: bool):
        self._memory, self._generation = memory, memory.generation
        self.calls = tuple(calls)
        offsets: dict[bytes, int] = {}
        for call in calls:
            if call.params:
                offsets.setdefault(call.params, len(offsets) * PARAMS_ALIGN)
        self._uniform = memory.allocate(max(PARAMS_ALIGN, len(offsets) * PARAMS_ALIGN), "params") if offsets else None
        if self._uniform is not None:
            packed = b"".join(params.ljust(PARAMS_ALIGN, b"\0") for params in offsets)
            memory.write(self._uniform, 0, packed)
        self.buffers: set[Buffer] = {p.buffer for c in calls for p in c.bindings.values()}
        groups: dict[Any, Any] = {}
        self.dispatches = [self._ready(c, pipelines, trusted, offsets.get(c.params, 0), groups) for c in calls]
        self.work = sum(d.work for d in self.dispatches)
        self._encoder = Encoder(self.dispatches)

    def _ready(
        self, call: Call, pipelines: Pipelines, trusted: bool, params_offset: int, made: dict[Any, Any]
    ) -> Dispatch:
        pipeline = pipelines.get(call.program, trusted)
        layouts = pipeline.layouts
        bound: dict[int, list[tuple[int, Any, int, int]]] = {}
        for b in pipeline.linked.bindings:
            if b.kind == "uniform":
                assert self._uniform is not None
                item = (b.index, self._uniform.handle, params_offset, max(16, len(call.params)))
            else:
                part = call.bindings[b.name]
                part.buffer.require_live("it was bound")
                item = (b.index, part.buffer.handle, part.offset, part.size)
            bound.setdefault(b.group, []).append(item)
        out = []
        for group, items in bound.items():
            key = (id(layouts[group]), tuple((i, id(h), o, s) for i, h, o, s in items))
            if key not in made:
                entries = [{"binding": i, "resource": {"buffer": h, "offset": o, "size": s}} for i, h, o, s in items]
                with native.errors(f"binding the buffers of {call.program.label}"):
                    made[key] = self._memory.handle.create_bind_group(layout=layouts[group], entries=entries)
            out.append((group, made[key]))
        x, y = fold(call.groups, self._memory.max_workgroups)
        return Dispatch(call.program, pipeline.handle, tuple(out), x, y, call.work, call.reads)

    def encode(self, compute: Any, begin: int = 0, end: int | None = None) -> None:
        """Encode dispatches ``begin`` to ``end`` into an open compute pass."""
        self._encoder.encode(compute, begin, end)

    def run(
        self,
        read: tuple[Slot, Sequence[Part]] | None = None,
        segment_work: float | None = None,
        cancelled: Callable[[], bool] | None = None,
        times: int = 1,
    ) -> None:
        """Encode and submit, on the device thread.

        Args:
            read: a staging slot, and the windows to copy into it, in this order, after the last dispatch.
            times: runs of the plan in one command buffer, each with its copies, one behind the other; only without
                ``segment_work``.
            segment_work: approximate multiply-adds of one submission; at most two submissions wait on the device.
                None submits everything at once.
            cancelled: called between submissions; True stops.
        """
        self._memory.require(self._generation)
        segments = self._segments(segment_work)
        fence: Slot | None = None
        for begin, end in segments[:-1]:
            previous, fence = fence, self._submit_segment(begin, end)
            if previous is not None:
                self._memory.wait_fence(previous)
            if cancelled is not None and cancelled():
                self._memory.wait_fence(fence)
                return
        self._submit_last(*segments[-1], read, times)
        if fence is not None:
            self._memory.wait_fence(fence)

    def run_between(self, begin: int, end: int) -> None:
        """Encode and submit the dispatches ``begin`` to ``end`` alone, on the device thread."""
        self._submit_last(begin, end, None)

    def compile(self) -> None:
        """Submit all dispatches with no workgroups, on the device thread: software drivers generate the code of a
        pipeline at its first dispatch, and nothing runs."""
        encoder = self._memory.encoder()
        self._encode_pass(encoder, Encoder([replace(d, x=0, y=0) for d in self.dispatches]), 0, None)
        self._memory.gate.submit(encoder, self.buffers)

    def _submit_segment(self, begin: int, end: int) -> Slot:
        encoder = self._memory.encoder()
        self._encode_pass(encoder, self._encoder, begin, end)
        slot = self._memory.copy_fence(encoder)
        self._memory.gate.submit(encoder, self.buffers, slot)
        return slot

    def _submit_last(self, begin: int, end: int, read: tuple[Slot, Sequence[Part]] | None, times: int = 1) -> None:
        encoder, at = self._memory.encoder(), 0
        slot, windows = (None, ()) if read is None else read
        for _ in range(times):
            self._encode_pass(encoder, self._encoder, begin, end)
            for part in windows:
                assert slot is not None
                encoder.copy_buffer_to_buffer(part.buffer.handle, part.offset, slot.buffer.handle, at, part.size)
                at += part.size
        self._memory.gate.submit(encoder, self.buffers, slot)

    @staticmethod
    def _encode_pass(encoder: Any, dispatches: Encoder, begin: int, end: int | None) -> None:
        compute = encoder.begin_compute_pass()
        dispatches.encode(compute, begin, end)
        compute.end()

    def _segments(self, work: float | None) -> list[tuple[int, int]]:
        if work is None:
            return [(0, len(self.dispatches))]
        segments, begin, total = [], 0, 0.0
        for i, d in enumerate(self.dispatches):
            if total and total + d.work > work:
                segments.append((begin, i))
                begin, total = i, 0.0
            total += d.work
        return [*segments, (begin, len(self.dispatches))]

    def free(self) -> None:
        """Free the uniform buffer; the tensors belong to their makers."""
        if self._uniform is not None:
            self._memory.free(self._uniform)
