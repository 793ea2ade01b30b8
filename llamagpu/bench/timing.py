"""Taking times of recorded plans."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from llamagpu.gpu import Device, Plan


def time_plans(
    device: Device, plans: dict[str, Plan], repeat: int = 5, before: Callable[[], None] | None = None
) -> dict[str, float]:
    """Median seconds of each plan, run in turns so that a drifting machine touches all alike; ``before`` each run."""
    taken: dict[str, list[float]] = {name: [] for name in plans}
    for round_ in range(repeat + 1):
        for name, plan in plans.items():
            if before is not None:
                before()
            device.finish()
            start = time.perf_counter()
            device.call(plan.run)
            device.finish()
            if round_:  # the first one compiles
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
