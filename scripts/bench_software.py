#!/usr/bin/env python3
"""Compare variants of kernels on a software adapter, in processor time, in the shape of SmolLM2-135M.

    python scripts/bench_software.py

Prints billions of multiply-adds per second of processor time: of the gate and up projections, loaded by u32 and by u64
(``Tuning.words``), with 1 and 8 vectors; and of attention after 128 positions, with 1 and 8 sequences. Then it prints
the microseconds of sampling a row of 49,152 logits, by workgroups as on GPUs and as on software adapters
(``Tuning.chunk`` and ``Tuning.pickers``). Variants alternate in one process, and the best of several rounds counts.
The last line is the wall time of a dispatch that does next to nothing.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import replace
from typing import TypeVar

import numpy as np

from llamagpu import gpu
from llamagpu.gpu import Affine, Device, Plan, Tensor
from llamagpu.gpu.timing import time_plans
from llamagpu.kernels import add
from llamagpu.kernels.attention_paged import attention_decode, partial_shape
from llamagpu.kernels.kv_write import PAGE, Cache, cache_columns
from llamagpu.kernels.noise import noise
from llamagpu.kernels.product import plain, product, store
from llamagpu.kernels.sampling import make_sampler, sample
from llamagpu.kernels.step import DRAW_WORDS, step_rows

ROWS, COLUMNS, HEADS, KV_HEADS, HEAD, VOCAB = 3072, 576, 9, 3, 64, 49152
POSITIONS, LAYERS = 129, 30
COPIES, ROUNDS, SECONDS = 6, 5, 0.05
K = TypeVar("K", bound=Hashable)
SAMPLERS = {"GPUs' workgroups": (1024, 256), "8 invocations": (4096, 8)}  # chunk and pickers


def weights(device: Device, dtype: str, seed: int) -> Tensor:
    """Random weights in the order of the device's tuning."""
    woven = device.tuning.order == "woven"
    if dtype.startswith("affine"):
        return noise(device.empty_affine(ROWS, COLUMNS, Affine(bits=int(dtype[6:]), group=32), woven=woven), seed)
    return noise(device.empty((ROWS, COLUMNS), dtype, purpose="weights", woven=woven), seed)


def best_seconds(device: Device, plans: dict[K, Plan]) -> dict[K, float]:
    """The least processor time of each plan, in seconds a run."""
    best = dict.fromkeys(plans, float("inf"))
    for _ in range(ROUNDS + 1):
        for name, plan in plans.items():
            runs, start, begin = 0, time.perf_counter(), time.process_time()
            while time.perf_counter() - start < SECONDS:
                device.call(plan.run)
                device.synchronize()
                runs += 1
            best[name] = min(best[name], (time.process_time() - begin) / runs)
    for plan in plans.values():
        plan.free()
    return best


def products(device: Device) -> None:
    """Every weight format, by the integers of a load and the number of vectors."""
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
        found = best_seconds(device, plans)
        rates = {key: ROWS * COLUMNS * COPIES * key[1] / s / 1e9 for key, s in found.items()}
        line = (f"{n} vectors: {rates['u32', n]:5.2f} -> {rates['u64', n]:5.2f}" for n in (1, 8))
        print(f"{dtype:9}", "   ".join(line), flush=True)


def attention(device: Device) -> None:
    """Attention over a cache in f16, of single positions of several sequences."""
    pages = -(-POSITIONS // PAGE)
    plans = {}
    for rows in (1, 8):
        columns = cache_columns(KV_HEADS, HEAD)
        table = device.tensor(np.arange(rows * pages, dtype=np.uint32).reshape(rows, pages), "u32")
        caches = [
            Cache(noise(device.empty((rows * pages, columns), "f16"), seed), table, KV_HEADS, HEAD)
            for seed in range(LAYERS)
        ]
        state = np.concatenate([step_rows([1], POSITIONS - 1) for _ in range(rows)])
        state[:, 2] = np.arange(rows)
        step = device.tensor(state, "u32")
        q = noise(device.empty((rows, HEADS * HEAD)), 1)
        out = device.empty(partial_shape(rows, HEADS, HEAD, 1))

        def chain(q: Tensor = q, step: Tensor = step, caches: list[Cache] = caches, out: Tensor = out) -> None:
            for cache in caches:
                attention_decode(q, step, cache, HEADS, 1, out)

        plans[rows] = device.record(chain)
    macs = 2 * HEADS * HEAD * POSITIONS * LAYERS
    found = best_seconds(device, plans)
    print(
        "attention", "   ".join(f"{rows} rows: {macs * rows / s / 1e9:5.2f}" for rows, s in found.items()), flush=True
    )


def sampling(device: Device) -> None:
    """Sampling a row: the most likely token, or a drawn one."""
    sampler = make_sampler(device, 1, 2, VOCAB)
    logits = noise(device.empty((1, VOCAB)), 1)
    state = device.tensor(step_rows([0], 5), "u32")
    for name, factor in (("greedy", 0.0), ("drawn", 1.0)):
        draws = np.zeros((1, DRAW_WORDS), np.uint32)
        draws[0, 1], draws[0, 2] = np.float32(factor).view(np.uint32), 1 << 30
        drawn = replace(sampler, draws=device.tensor(draws, "u32"))
        plans = {
            form: device.record(
                lambda drawn=drawn: [sample(logits, logits, state, drawn) for _ in range(LAYERS)],
                replace(device.tuning, chunk=chunk, pickers=pickers),
            )
            for form, (chunk, pickers) in SAMPLERS.items()
        }
        found = best_seconds(device, plans)
        print(name, "   ".join(f"{form}: {s / LAYERS * 1e6:.0f} µs" for form, s in found.items()), flush=True)


def dispatches(device: Device) -> None:
    """A small dispatch in a chain in which each waits for the one before."""
    a, b, ones = (noise(device.empty((1, 64)), seed) for seed in range(3))
    plan = device.record(lambda: [add(a, ones, b) if i % 2 else add(b, ones, a) for i in range(LAYERS)])
    print(f"a dispatch: {time_plans(device, {0: plan}, 9)[0] / LAYERS * 1e6:.0f} µs", flush=True)
    plan.free()


def main() -> None:
    """Measure the software adapter."""
    with gpu.open("software") as device:
        print(device.adapter.driver)
        products(device)
        attention(device)
        sampling(device)
        dispatches(device)


if __name__ == "__main__":
    main()
