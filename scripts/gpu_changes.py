"""Measurements of single changes for ``bench_gpu``: kernel variants on and off, steps a submission, attention alone."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

from llamagpu import gpu
from llamagpu.bench import measure, profile
from llamagpu.gpu.timing import time_plans
from llamagpu.kernels import add
from llamagpu.kernels.attention_paged import attention_decode, partial_shape
from llamagpu.kernels.kv_write import PAGE, Cache, cache_columns
from llamagpu.kernels.noise import noise
from llamagpu.kernels.step import step_rows
from llamagpu.model import prepare_shape
from llamagpu.model.tuner import tune

# Seconds of each section on a GPU; bursts take about 20 more.
LIMITS = {"attention": 30.0, "changes": 300.0, "llama_bench": 120.0}
_ATTENTION = {"heads": 32, "kv_heads": 8, "head": 64, "positions": 129}  # of llama-3.2-1b
_L2_BYTES = 200_000_000  # caches that a cold chain cycles through: over twice the largest L2


class Budget:
    """Seconds that a section may take. It is asked before each measurement."""

    def __init__(self, seconds: float):
        self._end = time.perf_counter() + seconds

    @property
    def left(self) -> bool:
        """Whether another measurement may start."""
        return time.perf_counter() < self._end


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
    asked: str, shape: str, dtype: str, budget: Budget, short: bool, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Seconds of decode steps of a shape under each change, in turns with the tuning, for 1 and 32 sequences. Changes
    that the budget does not reach are named."""
    rows = {b: {"shape": shape, "dtype": dtype, "batch": b} for b in ((1,) if short else (1, 32))}
    steps: dict[int, list[dict[str, Any]]] = {b: [] for b in rows}
    left_out = []
    with gpu.open(asked) as device:
        base = device.tuning if short else tune(device, prepare_shape(shape, dtype).layout)
        chosen = [(n, t) for n, t in variants_of(base) if t.reduce == "workgroup" or "subgroup" in device.features]
        with _subject(device, shape, dtype, base) as plain:
            for name, tuning in chosen[:2] if short else chosen:
                if not budget.left:
                    left_out.append(name)
                    continue
                with _subject(device, shape, dtype, tuning) as changed:
                    for batch in rows:
                        times = _in_turns(plain, changed, batch, 2 if short else 3)
                        ratio = times[1] / times[0]
                        steps[batch].append({"change": name, "step_s": times[1], "base_s": times[0], "of_base": ratio})
                        say(f"  {dtype} x{batch} {name}: {times[1] * 1e6:.0f} µs, {ratio:.3f} of the tuning's")
    return [row | {"steps": steps[b], "left_out": left_out, "tuning": str(base)} for b, row in rows.items()]


def _subject(device: gpu.Device, shape: str, dtype: str, tuning: gpu.Tuning) -> measure.Subject:
    with device.using(tuning):
        return measure.open_subject(None, shape, device=device, dtype=dtype, context=1024, at_once=32 * 600)


def _in_turns(plain: measure.Subject, changed: measure.Subject, batch: int, rounds: int) -> tuple[float, float]:
    """Median seconds of a step after 511 tokens of both subjects: two runs of attention, which may be merged."""
    taken = [[profile.step_seconds(s, 511, batch, 3) for s in (plain, changed)] for _ in range(rounds)]
    first, second = (statistics.median(times) for times in zip(*taken, strict=True))
    return first, second


def bursts(asked: str, shape: str, dtype: str, short: bool) -> dict[str, float]:
    """Tokens a second of one sequence, by the most steps of a submission."""
    out = {}
    with (
        gpu.open(asked) as device,
        measure.open_subject(None, shape, device=device, dtype=dtype, context=1024) as subject,
    ):
        for most in (1, 8):
            with mock.patch("llamagpu.engine.rate.MOST_STEPS", most):
                out[str(most)] = measure.run_generation(subject, 8 if short else 128, 128, 1, 1 if short else 3).avg_ts
    return out


def attention_alone(device: gpu.Device, budget: Budget, short: bool) -> list[dict[str, Any]]:
    """Seconds of one layer's decode attention: over one cache again and again, which stays in L2, and over many caches
    that together exceed it."""
    a = _ATTENTION
    heads, head, pages = a["heads"], a["head"], -(-a["positions"] // PAGE)
    columns = cache_columns(a["kv_heads"], head)
    count = 4 if short else _L2_BYTES // (2 * pages * columns)
    with device.ledger.tracking() as made:
        datas = [noise(device.empty((pages, columns), "f16"), n) for n in range(count)]
        table = device.tensor(np.arange(pages, dtype=np.uint32)[None], "u32")
        caches = [Cache(data, table, a["kv_heads"], head) for data in datas]
        rows = device.tensor(step_rows([0], a["positions"] - 1), "u32")
        q = device.tensor(np.ones((1, heads * head), np.float32))
        out = device.empty(partial_shape(1, heads, head, 1))
    found = []
    for kind in ("whole", "blocks"):
        if not budget.left:
            break
        tuning = replace(device.tuning, attention=kind)

        def record(used: Sequence[Cache], tuning: gpu.Tuning = tuning) -> gpu.Plan:
            return device.record(lambda: [attention_decode(q, rows, c, heads, 1, out) for c in used], tuning)

        plans = {"warm_s": record(caches[:1] * count), "cold_s": record(caches)}
        times = time_plans(device, plans, 3 if short else 9)
        found.append({"kind": kind, **{name: seconds / count for name, seconds in times.items()}})
        for plan in plans.values():
            plan.free()
    for buffer in made:
        device.free(buffer)
    return found


def gaps(device: gpu.Device, count: int) -> dict[str, float]:
    """Seconds that a small dispatch adds if it waits for the previous one, and if it is independent."""
    x, y, z = (device.tensor(np.ones((1, 256), np.float32)) for _ in range(3))
    outs = [device.empty((1, 256)) for _ in range(count)]
    plans = {
        "waiting": device.record(lambda: [add(x, y, z) if i % 2 else add(z, y, x) for i in range(count)]),
        "independent": device.record(lambda: [add(x, y, out) for out in outs]),
    }
    return {name: seconds / count for name, seconds in time_plans(device, plans).items()}


def llama_bench(paths: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    """llama.cpp's own benchmark on GGUF files: ``paths`` is the program, then the files. Empty without it."""
    out, budget = [], Budget(seconds)
    for model in paths[1:]:
        if not budget.left:
            break
        command = [paths[0], "-m", model, "-ngl", "99", "-p", "512", "-n", "128", "-d", "128", "-r", "3", "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
        out += [
            {"type": r["model_type"], "test": f"pp{r['n_prompt']} tg{r['n_gen']}", "tokens_per_s": r["avg_ts"]}
            for r in json.loads(done.stdout)
        ]
    return out
