"""The rate of a device: what one submission may hold, so that it answers soon and no driver stops it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from llamagpu.gpu import Part, Plan, Slot
from llamagpu.model.step import MOST_STEPS

PACE_SECONDS = 0.1  # goal for one submission of a prefill, and for a prefill beside running sequences
BURST_SECONDS = 0.01  # goal for the steps of one submission, whose tokens come together
STEP_SECONDS = 1.0  # most for one submission of a step: drivers stop commands that run for seconds
# Multiply-adds a second, assumed until a long prompt has shown the true rate.
_ASSUMED = {"software": 3e9, "integrated": 2e11, "discrete": 2e12, "other": 2e11}


class Rate:
    """Runs plans in submissions of a fitting size, and learns the rate from long ones. On the device thread.

    Attributes:
        work: multiply-adds a second.
        step_seconds: of a step that follows another; None before the first.
    """

    def __init__(self, kind: str):
        """``kind``: the kind of the adapter."""
        self.work = _ASSUMED[kind]
        self.step_seconds: float | None = None
        self._landed = 0.0

    @property
    def paced(self) -> float:
        """Multiply-adds that take about ``PACE_SECONDS``."""
        return self.work * PACE_SECONDS

    @property
    def segment_work(self) -> float:
        """The most multiply-adds of one submission of a step."""
        return self.work * STEP_SECONDS

    @property
    def burst(self) -> int:
        """Steps of one submission: more than one where steps are short, so that a stream comes without jerks."""
        seconds = self.step_seconds
        return 1 if seconds is None else min(MOST_STEPS, max(1, int(BURST_SECONDS / seconds)))

    def run_step(self, plan: Plan, read: tuple[Slot, Sequence[Part]] | None = None, times: int = 1) -> None:
        """Run a plan of a step, in one submission if that is not too long; see ``Plan.run``."""
        most = self.segment_work
        plan.run(read=read, segment_work=most if plan.work > most and times == 1 else None, times=times)

    def landed(self, follows: bool, steps: int) -> None:
        """Note that the results of steps came, and learn what they took if they followed the ones before."""
        now = time.perf_counter()
        if follows:
            each = (now - self._landed) / steps
            self.step_seconds = each if self.step_seconds is None else 0.75 * self.step_seconds + 0.25 * each
        self._landed = now

    def run_prompt(self, plan: Plan, cancelled: Callable[[], bool]) -> None:
        """Run a plan in submissions of about ``PACE_SECONDS``, and learn the rate from a long one."""
        pace, start = self.paced, time.perf_counter()
        plan.run(segment_work=pace, cancelled=cancelled)
        if not cancelled() and plan.work > 10 * pace:  # all but the last two submissions are done
            self.work = (plan.work - 2 * pace) / (time.perf_counter() - start)
