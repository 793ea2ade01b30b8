"""Replays of recorded plans, dispatch by dispatch, with what each one read and wrote."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Device, Part, Plan, Program, row_items, widen_bf16
from llamagpu.gpu.linker import link
from llamagpu.gpu.plan import Call

_KINDS = {"f32": np.float32, "f16": np.float16, "u32": np.uint32, "bf16": np.uint16}
_CODES = {"u32": "I", "i32": "i", "f32": "f"}


@dataclass(frozen=True)
class Step:
    """One kernel call of a plan that ran: its program, params and bindings, and the bytes of these before and after.

    The call may have several dispatches, one for each part of its weights; ``params`` are those of the first.
    """

    program: Program
    params: Mapping[str, Any]
    bindings: Mapping[str, Part]
    old: Mapping[str, bytes]
    new: Mapping[str, bytes]

    @property
    def libs(self) -> dict[str, str]:
        """The chosen implementations by interface."""
        return dict(self.program.libs)

    @property
    def consts(self) -> dict[str, int]:
        """The constants of the program."""
        return dict(self.program.consts)

    def before(self, name: str, columns: int, rows: int | None = None, dtype: str = "f32") -> npt.NDArray[Any]:
        """The first rows of a binding before the call, without padding; all rows by default."""
        return _rows(self.old[name], columns, rows, dtype)

    def after(self, name: str, columns: int, rows: int | None = None, dtype: str = "f32") -> npt.NDArray[Any]:
        """The same after the call."""
        return _rows(self.new[name], columns, rows, dtype)


def replay(device: Device, plan: Plan, weights: frozenset[Any]) -> Iterator[Step]:
    """Run a plan call by call. Buffers in ``weights`` are not read back.

    Every dispatch reads what the previous ones left on the GPU, so that errors show where they arise.
    """
    begin = 0
    while begin < len(plan.calls):
        call, end = plan.calls[begin], begin + 1
        while end < len(plan.calls) and _continues(call, plan.calls[end], weights):
            end += 1
        windows = {name: p for name, p in call.bindings.items() if p.buffer not in weights}
        old = {name: device.memory.read(part) for name, part in windows.items()}
        device.call(lambda b=begin, e=end: plan.run_between(b, e))  # type: ignore[misc]
        written = {b.name for b in link(call.program).bindings if b.kind == "storage"}
        new = {name: device.memory.read(part) for name, part in windows.items() if name in written}
        yield Step(call.program, _params(call), call.bindings, old, new)
        begin = end


def _continues(call: Call, other: Call, weights: frozenset[Any]) -> bool:
    """Whether a call is the next part of the same product or look-up."""
    fixed = {name: p for name, p in call.bindings.items() if p.buffer not in weights}
    parts = [c.bindings.get("weights_data") for c in (call, other)]
    return (
        call.program == other.program
        and parts[0] is not None
        and parts[1] is not None
        and parts[0].first < parts[1].first
        and fixed == {name: p for name, p in other.bindings.items() if p.buffer not in weights}
    )


def _params(call: Call) -> dict[str, Any]:
    fields = link(call.program).params
    values = struct.unpack_from("<" + "".join(_CODES[kind] for _, kind in fields), call.params)
    return dict(zip((name for name, _ in fields), values, strict=True))


def _rows(data: bytes, columns: int, rows: int | None, dtype: str) -> npt.NDArray[Any]:
    stride = row_items(columns, dtype)
    items = np.frombuffer(data, _KINDS[dtype])
    found = items[: len(items) // stride * stride].reshape(-1, stride)[:rows, :columns]
    return widen_bf16(found) if dtype == "bf16" else found
