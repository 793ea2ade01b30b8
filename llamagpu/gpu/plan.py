"""Recorded dispatches: a forward pass is recorded once for a shape and replayed for every token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamagpu.gpu import native
from llamagpu.gpu.encode import Dispatch, Encoder
from llamagpu.gpu.gate import Slot
from llamagpu.gpu.ledger import Buffer
from llamagpu.gpu.linker import Program
from llamagpu.gpu.tensor import Part

if TYPE_CHECKING:
    from llamagpu.gpu.device import Device

PARAMS_ALIGN = 256  # WebGPU's default offset alignment of a uniform binding


@dataclass(frozen=True)
class Call:
    """One kernel call as a wrapper states it. ``work`` counts multiply-adds, ``reads`` bytes of weights and cache."""

    program: Program
    groups: int
    params: bytes
    bindings: Mapping[str, Part]
    work: int
    reads: int


class Plan:
    """A flat list of dispatches over fixed buffers, and the uniform buffer that their sizes are in."""

    def __init__(self, device: Device, calls: list[Call]):
        self._device = device
        offsets: dict[bytes, int] = {}
        for call in calls:
            if call.params:
                offsets.setdefault(call.params, len(offsets) * PARAMS_ALIGN)
        self._uniform = device.allocate(max(PARAMS_ALIGN, len(offsets) * PARAMS_ALIGN), "params") if offsets else None
        if self._uniform is not None:
            packed = b"".join(params.ljust(PARAMS_ALIGN, b"\0") for params in offsets)
            device.write_bytes(self._uniform, 0, packed)
        self.buffers: set[Buffer] = {p.buffer for c in calls for p in c.bindings.values()}
        groups: dict[Any, Any] = {}
        self.dispatches = [self._ready(call, offsets.get(call.params, 0), groups) for call in calls]
        self.work = sum(d.work for d in self.dispatches)
        self._encoder = Encoder(self.dispatches)

    def _ready(self, call: Call, params_offset: int, made: dict[Any, Any]) -> Dispatch:
        device = self._device
        pipeline = device.pipelines.get(call.program, device.tuning.trusted)
        layouts = pipeline.layouts
        bound: dict[int, list[tuple[int, Any, int, int]]] = {}
        for b in pipeline.linked.bindings:
            if b.kind == "uniform":
                assert self._uniform is not None
                item = (b.index, self._uniform.handle, params_offset, max(16, len(call.params)))
            else:
                part = call.bindings[b.name]
                item = (b.index, part.buffer.handle, part.offset, part.size)
            bound.setdefault(b.group, []).append(item)
        out = []
        for group, items in bound.items():
            key = (id(layouts[group]), tuple((i, id(h), o, s) for i, h, o, s in items))
            if key not in made:
                with native.errors(f"binding the buffers of {call.program.label}"):
                    made[key] = device.handle.create_bind_group(
                        layout=layouts[group],
                        entries=[
                            {"binding": i, "resource": {"buffer": h, "offset": o, "size": s}} for i, h, o, s in items
                        ],
                    )
            out.append((group, made[key]))
        x, y = device.fold(call.groups)
        return Dispatch(call.program.label, pipeline.handle, tuple(out), x, y, call.work, call.reads)

    def encode(self, compute: Any, begin: int = 0, end: int | None = None) -> None:
        """Put dispatches ``begin`` to ``end`` into an open compute pass."""
        self._encoder.encode(compute, begin, end)

    def run(
        self,
        read: tuple[Slot, Sequence[Part]] | None = None,
        segment_work: float | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Encode and submit, on the device thread.

        Without ``segment_work`` it is one pass in one submission. With it, submissions end after about that many
        multiply-adds, at most two of them wait on the device, and ``cancelled`` is asked between them. ``read`` copies
        windows, one behind another, into a staging slot after the last dispatch.
        """
        device, gate = self._device, self._device.gate
        cuts = self._cuts(segment_work)
        fence: Slot | None = None
        for number, (begin, end) in enumerate(cuts):
            last = number == len(cuts) - 1
            encoder = device.encoder()
            compute = encoder.begin_compute_pass()
            self._encoder.encode(compute, begin, end)
            compute.end()
            slot = None
            if last and read is not None:
                slot, at = read[0], 0
                for part in read[1]:
                    encoder.copy_buffer_to_buffer(part.buffer.handle, part.offset, slot.buffer.handle, at, part.size)
                    at += part.size
            elif not last:
                slot = device.staging.take(16)
                encoder.copy_buffer_to_buffer(device.fence.handle, 0, slot.buffer.handle, 0, 16)
            gate.submit(encoder, self.buffers, slot)
            if fence is not None:
                gate.read(fence, 16)
                device.staging.give(fence)
            fence = slot if not last else None
            if cancelled is not None and not last and cancelled():
                if fence is not None:
                    gate.read(fence, 16)
                    device.staging.give(fence)
                return

    def _cuts(self, segment_work: float | None) -> list[tuple[int, int]]:
        if segment_work is None:
            return [(0, len(self.dispatches))]
        cuts, begin, total = [], 0, 0.0
        for i, d in enumerate(self.dispatches):
            if total and total + d.work > segment_work:
                cuts.append((begin, i))
                begin, total = i, 0.0
            total += d.work
        return [*cuts, (begin, len(self.dispatches))]

    def free(self) -> None:
        """Give the uniform buffer back; the tensors belong to whoever made them."""
        if self._uniform is not None:
            self._device.free(self._uniform)
