#!/usr/bin/env python3
"""Compare loads by u32 and by u64 (``Tuning.words``) in the products of decode steps on a software adapter.

    python scripts/bench_loads.py

Prints billions of multiply-adds per second of processor time for 1 and 8 vectors, in the shape of SmolLM2-135M's gate
and up projections.
Both variants alternate in one process, and the best of several rounds counts.
"""

from __future__ import annotations

import time
from dataclasses import replace

from llamagpu import gpu
from llamagpu.gpu import Affine, Device, Tensor
from llamagpu.kernels.noise import noise
from llamagpu.kernels.product import plain, product, store

ROWS, COLUMNS, COPIES, ROUNDS, SECONDS = 3072, 576, 6, 5, 0.05


def weights(device: Device, dtype: str, seed: int) -> Tensor:
    """Random weights in the order of the device's tuning."""
    woven = device.tuning.order == "woven"
    if dtype.startswith("affine"):
        return noise(device.empty_affine(ROWS, COLUMNS, Affine(bits=int(dtype[6:]), group=32), woven=woven), seed)
    return noise(device.empty((ROWS, COLUMNS), dtype, purpose="weights", woven=woven), seed)


def rate(device: Device, plan: gpu.Plan, vectors: int) -> float:
    """Billions of multiply-adds per second of processor time."""
    runs, start, begin = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < SECONDS:
        device.call(plan.run)
        device.synchronize()
        runs += 1
    return runs * ROWS * COLUMNS * COPIES * vectors / (time.process_time() - begin) / 1e9


def main() -> None:
    """Measure every format."""
    with gpu.open("software") as device:
        print(device.adapter.driver)
        for dtype in ("f32", "f16", "affine8", "affine4"):
            held = [weights(device, dtype, seed) for seed in range(COPIES)]
            plans = {}
            for vectors in (1, 8):
                x, y = noise(device.empty((vectors, COLUMNS)), 1), device.empty((vectors, ROWS))

                def chain(x: Tensor = x, y: Tensor = y, held: list[Tensor] = held) -> None:
                    for w in held:
                        product(plain(x), w, None, store(y))

                for words in ("u32", "u64"):
                    plans[words, vectors] = device.record(chain, replace(device.tuning, words=words))
            best = dict.fromkeys(plans, 0.0)
            for _ in range(ROUNDS + 1):
                for (words, vectors), plan in plans.items():
                    best[words, vectors] = max(best[words, vectors], rate(device, plan, vectors))
            line = (f"{n} vectors: {best['u32', n]:5.2f} -> {best['u64', n]:5.2f}" for n in (1, 8))
            print(f"{dtype:8}", "   ".join(line), flush=True)


if __name__ == "__main__":
    main()
