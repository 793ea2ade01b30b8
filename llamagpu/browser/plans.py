"""A model's recorded plans as JSON values: programs, bind groups, params and dispatches over numbered buffers."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llamagpu.gpu import Linked, Program, link
from llamagpu.gpu.adapter import DEFAULT_LIMITS
from llamagpu.gpu.ledger import Buffer
from llamagpu.gpu.plan import Call, fold

Json = dict[str, Any]
T = TypeVar("T")


class _Table:
    """Values by number, each entered once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[Hashable, int] = {}

    def number(self, key: Hashable, value: Any) -> int:
        """The number of a value, which ``key`` identifies."""
        if key not in self._numbers:
            self._numbers[key] = len(self.values)
            self.values.append(value)
        return self._numbers[key]


@dataclass
class PlanWriter:
    """Collects the calls of plans. A plan is a list of dispatches [program, bind groups, x, y, multiply-adds], whose
    programs and bind groups are numbers in tables that all plans share.

    Attributes:
        buffers: the number of every buffer.
        shaders: the linked WGSL texts, by file name.
    """

    buffers: Mapping[Buffer, int]
    shaders: dict[str, str]
    _modules: _Table = field(default_factory=_Table)
    _layouts: _Table = field(default_factory=_Table)
    _programs: _Table = field(default_factory=_Table)
    _params: _Table = field(default_factory=_Table)
    _groups: _Table = field(default_factory=_Table)

    def tables(self) -> Json:
        """What the dispatches refer to.

        ``layouts`` are lists of [binding, type]; ``params`` are lists of 32-bit words, each the content of one uniform
        binding; ``groups`` are [layout, [[binding, buffer, offset, size], …]], where the buffer -1 stands for params,
        whose number is the offset.
        """
        return {
            "modules": self._modules.values,
            "layouts": self._layouts.values,
            "programs": self._programs.values,
            "params": self._params.values,
            "groups": self._groups.values,
        }

    def plan(self, calls: tuple[Call, ...]) -> list[list[Any]]:
        """The dispatches of a plan."""
        limit = DEFAULT_LIMITS["max-compute-workgroups-per-dimension"]
        return [[self._program(c.program), self._groups_of(c), *fold(c.groups, limit), c.work] for c in calls]

    def _program(self, program: Program) -> int:
        linked = _linked(program)
        file = f"{program.shader}-{hashlib.sha256(linked.code.encode()).hexdigest()[:12]}.wgsl"
        self.shaders[file] = linked.code
        value = {
            "label": program.label,
            "module": self._modules.number(file, file),
            "entry": program.entry,
            "constants": dict(program.overrides),
            "layouts": [self._layout(program, group) for group in _groups(program)],
        }
        return self._programs.number(program, value)

    def _layout(self, program: Program, group: int) -> int:
        entries = [[b.index, b.kind] for b in _linked(program).bindings if b.group == group]
        return self._layouts.number(str(entries), entries)

    def _groups_of(self, call: Call) -> list[int]:
        out = []
        for group in _groups(call.program):
            entries = []
            for b in _linked(call.program).bindings:
                if b.group != group:
                    continue
                if b.kind == "uniform":
                    words = list(struct.unpack(f"<{len(call.params) // 4}I", call.params))
                    entries.append([b.index, -1, self._params.number(call.params, words), len(call.params)])
                else:
                    part = call.bindings[b.name]
                    entries.append([b.index, self.buffers[part.buffer], part.offset, part.size])
            value = [self._layout(call.program, group), entries]
            out.append(self._groups.number(str(value), value))
        return out


def _linked(program: Program) -> Linked:
    return link(program, "browser")


def _groups(program: Program) -> range:
    return range(max((b.group for b in _linked(program).bindings), default=-1) + 1)
