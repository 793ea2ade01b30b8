"""The adapter's peak rates as measured, which other figures are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llamagpu import gpu
from llamagpu.gpu.timing import time_calls, time_plans
from llamagpu.kernels.yardsticks import GROUP, copy, multiply_add

_COPY_BYTES = {"software": 64_000_000}  # of one buffer; 512 MB elsewhere, far more than caches hold


@dataclass(frozen=True)
class Yardsticks:
    """Bytes copied a second (reads and writes), and multiply-adds a second, both in f32."""

    bandwidth: float
    multiply_adds: float


def yardsticks(device: gpu.Device) -> Yardsticks:
    """Measure the adapter: copying, by the kernel ``copy`` or by the driver's own copy, whichever is faster; and
    multiply-adds, by the kernel ``multiply_add``."""
    size, steps = _COPY_BYTES.get(device.adapter.kind, 512_000_000), 2000
    size = min(size, device.memory.largest_binding) // 1024 * 1024
    with device.ledger.tracking() as made:
        x, y = (device.empty((size // 1024, 256)) for _ in range(2))
        chains = device.empty(((256 if device.adapter.kind == "software" else 16384) * GROUP, 4))
        start = device.tensor(np.array([[0.5, 0.25, 0, 0]], np.float32))
    plans = {
        "copy": device.record(lambda: copy(x, y)),
        "multiply_add": device.record(lambda: multiply_add(start, chains, steps)),
    }
    seconds = time_plans(device, plans, 5) | time_calls(
        device, {"driver": lambda: device.memory.copy(x.part, y.part)}, 3
    )
    work = plans["multiply_add"].work
    for plan in plans.values():
        plan.free()
    for buffer in made:
        device.free(buffer)
    return Yardsticks(2 * x.nbytes / min(seconds["copy"], seconds["driver"]), work / seconds["multiply_add"])
