"""Taking times of recorded plans."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

from llamagpu.gpu import Device, Plan


def time_plans(
    device: Device, plans: dict[str, Plan], repeat: int = 5, before: Callable[[], None] | None = None
) -> dict[str, float]:
    """Median seconds of each plan, see ``time_calls``."""
    return time_calls(device, {name: partial(device.call, plan.run) for name, plan in plans.items()}, repeat, before)


def time_calls(
    device: Device, calls: Mapping[str, Callable[[], None]], repeat: int, before: Callable[[], None] | None = None
) -> dict[str, float]:
    """Median seconds of what each call submits, in turns, so that a drifting machine touches all alike.

    ``before`` is called in front of each; the first round, which compiles, does not count.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeat + 1):
        for name, call in calls.items():
            if before is not None:
                before()
            seconds = time_once(device, call)
            if round_:
                taken[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def time_once(device: Device, call: Callable[[], None]) -> float:
    """Seconds from a call until what it submitted is done; what was submitted before does not count."""
    device.finish()
    start = time.perf_counter()
    call()
    device.finish()
    return time.perf_counter() - start
