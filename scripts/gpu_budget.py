"""The time of ``bench_gpu``: sections with deadlines, which are asked before each measurement."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import accumulate


class Budget:
    """The time of a section, up to ``end`` (of ``time.perf_counter``). It names what it refuses in ``left_out``."""

    def __init__(self, end: float, left_out: list[str]):
        self._end, self._left_out = end, left_out

    @property
    def left(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._end - time.perf_counter())

    def allows(self, what: str, seconds: float = 0.0) -> bool:
        """Whether a measurement that takes about ``seconds`` may start."""
        allowed = self.left > seconds
        if not allowed:
            self._left_out.append(what)
        return allowed

    def share(self, parts: int) -> Budget:
        """The first of ``parts`` equal parts of the time that is left."""
        return Budget(time.perf_counter() + self.left / parts, self._left_out)


class Schedule:
    """The budgets of a run's sections, one after another. What a section does not use, the next ones may. A measurement
    that takes longer than its section has takes the time from them, so that the sum holds.

    Args:
        limits: seconds of each section of a run of ``FULL`` seconds.
        seconds: of this run.

    Attributes:
        left_out: what no time was left for, by section.
    """

    FULL = 540.0

    def __init__(self, limits: Mapping[str, float], seconds: float):
        assert sum(limits.values()) < self.FULL
        start, scale = time.perf_counter(), seconds / self.FULL
        self._ends = {name: start + scale * end for name, end in zip(limits, accumulate(limits.values()), strict=True)}
        self.left_out: dict[str, list[str]] = {}

    def budget(self, section: str) -> Budget:
        """The budget of a section."""
        return Budget(self._ends[section], self.left_out.setdefault(section, []))
