"""Measurements of single changes for ``bench_gpu``: kernel variants on and off, and steps a submission."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
from gpu_budget import Budget

from llamagpu import gpu
from llamagpu.bench import measure, profile
from llamagpu.gpu.timing import time_plans
from llamagpu.kernels import add


def variants_of(base: gpu.Tuning) -> Iterator[tuple[str, gpu.Tuning]]:
    """The tuning with one choice changed at a time, by its name."""
    for field, values in (
        ("trusted", (True, False)),
        ("attention", ("whole", "blocks")),
        ("merged_runs", (1, 4)),
        ("reduce", ("workgroup", "subgroup")),
        ("gather", ("whole", "transposed")),
        ("digits", ("integers", "halves")),
        ("squares", ("apart", "joined")),
    ):
        for value in values:
            if getattr(base, field) != value:
                yield f"{field}={value}", replace(base, **{field: value})
    if base.gather == "whole":
        other = "workgroup" if base.reduce == "subgroup" else "subgroup"
        yield f"reduce={other}, gather=transposed", replace(base, reduce=other, gather="transposed")
    for field, number in (("block", 4), ("block", 8), ("ahead", 4), ("ahead", 8), ("passes", 1), ("passes", 4)):
        lanes = tuple(replace(t, cut=replace(t.cut, **{field: number})) for t in base.lanes)
        if lanes != base.lanes:
            yield f"{field}={number}", replace(base, lanes=lanes)


def changes(
    device: gpu.Device,
    shape: str,
    dtype: str,
    base: gpu.Tuning,
    budget: Budget,
    short: bool,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Seconds of decode steps of a shape under each change, in turns with the tuning, for 1 and 32 sequences."""
    batches = (1,) if short else (1, 32)
    steps: dict[int, list[dict[str, Any]]] = {b: [] for b in batches}
    chosen = [(n, t) for n, t in variants_of(base) if t.reduce == "workgroup" or "subgroup" in device.features]
    if budget.allows(f"all changes of {dtype}"):
        with _subject(device, shape, dtype, base) as plain:
            taken = 0.0  # seconds of the last change: the next one takes as long
            for name, tuning in chosen[:2] if short else chosen:
                if not budget.allows(f"{name} ({dtype})", taken):
                    continue
                start = time.perf_counter()
                with _subject(device, shape, dtype, tuning) as changed:
                    for batch in batches:
                        times = _in_turns(plain, changed, batch, 2 if short else 3)
                        ratio = times[1] / times[0]
                        steps[batch].append({"change": name, "step_s": times[1], "base_s": times[0], "of_base": ratio})
                        say(f"  {dtype} x{batch} {name}: {times[1] * 1e6:.0f} µs, {ratio:.3f} of the tuning's")
                taken = time.perf_counter() - start
    return [{"shape": shape, "dtype": dtype, "batch": b, "steps": steps[b], "tuning": str(base)} for b in batches]


def _subject(device: gpu.Device, shape: str, dtype: str, tuning: gpu.Tuning) -> measure.Subject:
    with device.using(tuning):
        return measure.open_subject(None, shape, device=device, dtype=dtype, context=1024, at_once=32 * 600)


def _in_turns(plain: measure.Subject, changed: measure.Subject, batch: int, rounds: int) -> tuple[float, float]:
    """Median seconds of a step after 511 tokens of both subjects: two runs of attention, which may be merged."""
    taken = [[profile.step_seconds(s, 511, batch, 3) for s in (plain, changed)] for _ in range(rounds)]
    first, second = (statistics.median(times) for times in zip(*taken, strict=True))
    return first, second


def bursts(
    device: gpu.Device, shape: str, dtype: str, tuning: gpu.Tuning, budget: Budget, short: bool
) -> dict[str, float]:
    """Tokens a second of one sequence, by the most steps of a submission."""
    out: dict[str, float] = {}
    if not budget.allows(f"bursts of {dtype}"):
        return out
    with (
        device.using(tuning),
        measure.open_subject(None, shape, device=device, dtype=dtype, context=1024) as subject,
    ):
        for most in (1, 8):
            if budget.allows(f"bursts of {most} ({dtype})"):
                with mock.patch("llamagpu.engine.rate.MOST_STEPS", most):
                    run = measure.run_generation(subject, 8 if short else 128, 128, 1, 1 if short else 3)
                out[str(most)] = run.avg_ts
    return out


def gaps(device: gpu.Device, count: int) -> dict[str, float]:
    """Seconds that a small dispatch adds if it waits for the previous one, and if it is independent."""
    x, y, z = (device.tensor(np.ones((1, 256), np.float32)) for _ in range(3))
    outs = [device.empty((1, 256)) for _ in range(count)]
    plans = {
        "waiting": device.record(lambda: [add(x, y, z) if i % 2 else add(z, y, x) for i in range(count)]),
        "independent": device.record(lambda: [add(x, y, out) for out in outs]),
    }
    return {name: seconds / count for name, seconds in time_plans(device, plans).items()}
