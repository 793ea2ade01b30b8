"""Lists of commands: recorded plans and copies between buffers, submitted together and never waited for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from llamagpu.gpu.ledger import Buffer, Part
from llamagpu.gpu.memory import Memory
from llamagpu.gpu.plan import Plan
from llamagpu.gpu.tensor import Tensor


@dataclass(frozen=True)
class Copy:
    """A copy of a window's bytes to a window of the same size, in another buffer."""

    source: Part
    target: Part


@dataclass(frozen=True)
class _Slice:
    """Consecutive dispatches of a plan."""

    plan: Plan
    begin: int
    end: int


_Command = Copy | _Slice


def copy_rows(source: Tensor, first: int, target: Tensor, begin: int, end: int) -> list[Copy]:
    """Copies of the rows of ``source`` from ``first`` on to rows ``begin`` to ``end`` of ``target``.

    Both have the same dtype and columns. Any row may be the first one: a copy needs no alignment but that of a row.
    """
    out = []
    for part in target.parts:
        low, high = max(begin, part.first), min(end, part.first + part.rows)
        if low < high:
            taken = _window(source, source.part, first + low - begin, high - low)
            out.append(Copy(taken, _window(target, part, low - part.first, high - low)))
    return out


def _window(tensor: Tensor, part: Part, row: int, rows: int) -> Part:
    return Part(part.buffer, part.offset + row * tensor.row_bytes, rows * tensor.row_bytes, 0, rows)


class CommandList:
    """Plans and copies that run in order, any number of times.

    A run makes one encoder and one submission, or several if the plans have more than ``segment_work`` multiply-adds,
    because drivers stop commands that run for seconds. Nothing is allocated, and nothing is waited for.
    """

    def __init__(self, memory: Memory, steps: Sequence[Plan | Copy], segment_work: float):
        self._memory, self._generation = memory, memory.generation
        self._submissions = [(commands, _buffers(commands)) for commands in _cut(steps, segment_work)]

    def run(self) -> None:
        """Encode and submit, on the device thread.

        Raises:
            KernelError: a buffer was freed.
        """
        self._memory.require(self._generation)
        for commands, buffers in self._submissions:
            encoder = self._memory.encoder()
            for copies, group in groupby(commands, lambda c: isinstance(c, Copy)):
                (_encode_copies if copies else _encode_pass)(encoder, group)
            self._memory.gate.submit(encoder, buffers)


def _cut(steps: Iterable[Plan | Copy], most: float) -> list[list[_Command]]:
    """The commands of each submission."""
    out: list[list[_Command]] = [[]]
    total = 0.0
    for step in steps:
        if isinstance(step, Copy):
            out[-1].append(step)
            continue
        begin = 0
        for i, dispatch in enumerate(step.dispatches):
            if total and total + dispatch.work > most:
                if begin < i:
                    out[-1].append(_Slice(step, begin, i))
                out.append([])
                begin, total = i, 0.0
            total += dispatch.work
        out[-1].append(_Slice(step, begin, len(step.dispatches)))
    return out


def _buffers(commands: Iterable[_Command]) -> set[Buffer]:
    out: set[Buffer] = set()
    for command in commands:
        if isinstance(command, Copy):
            out |= {command.source.buffer, command.target.buffer}
        else:
            out |= command.plan.buffers
    return out


def _encode_copies(encoder: Any, commands: Iterator[Any]) -> None:
    for c in commands:
        ends = (c.source.buffer.handle, c.source.offset, c.target.buffer.handle, c.target.offset)
        encoder.copy_buffer_to_buffer(*ends, c.source.size)


def _encode_pass(encoder: Any, commands: Iterator[Any]) -> None:
    compute = encoder.begin_compute_pass()
    for c in commands:
        c.plan.encode(compute, c.begin, c.end)
    compute.end()
