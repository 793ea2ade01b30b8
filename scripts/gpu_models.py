"""Products and models on a GPU for ``bench_gpu``, each with a tuning measured for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from gpu_budget import Budget

from llamagpu import gpu
from llamagpu.bench import Subject, measure, profile
from llamagpu.gpu.timing import time_plans
from llamagpu.kernels.matmul import matmul_nt
from llamagpu.kernels.matvec import matvec
from llamagpu.kernels.noise import noise
from llamagpu.model import prepare_shape
from llamagpu.model.layout import Matrix
from llamagpu.model.tuner import tune, tune_shapes
from llamagpu.model.tuner_products import Shape
from llamagpu.model.weights import empty_matrix

FORMATS: dict[str, str | gpu.Affine] = {
    "f32": "f32",
    "bf16": "bf16",
    "f16": "f16",
    "int8": gpu.Affine(8, 64, "f16"),
    "int4": gpu.Affine(4, 64, "f16"),
}
DTYPES = {"f16": "float16", "int8": "int8", "int4": "int4"}
_ROTATE_BYTES = 300_000_000  # weights that a chain cycles through: over four times the largest L2 cache
Say = Callable[[str], None]


def tuned(device: gpu.Device, shape: str, dtype: str, seconds: float, out: dict[str, Any], say: Say) -> gpu.Tuning:
    """A tuning for a shape, measured within about ``seconds``; ``out`` has the time and what was left out."""
    lines: list[str] = []
    start = time.perf_counter()
    tuning = tune(device, prepare_shape(shape, DTYPES[dtype]).layout, lines.append, seconds)
    left_out = [line.partition("left out: ")[2] for line in lines if "left out: " in line]
    out |= {"tune_s": time.perf_counter() - start, "tuning": str(tuning), "tuning_left_out": left_out}
    say(f"  tuned {shape} {dtype} in {out['tune_s']:.1f} s")
    return tuning


def products(
    device: gpu.Device, copy: float, peak: float, budget: Budget, short: bool, out: dict[str, Any], say: Say
) -> None:
    """Measure products of 512 vectors, and of one with more weights than caches hold, tuned for each format.

    Args:
        copy: bytes a second of copying, and ``peak``, multiply-adds a second, that they are compared with.
    """
    few = [(1536, 576)] if short else [(4096, 14336), (128256, 4096)]
    many = [(576, 1536)] if short else [(8192, 2048), (2048, 8192)]
    out |= {"matvec": [], "matmul": []}
    for i, (name, format) in enumerate(FORMATS.items()):
        if not budget.allows(f"products {name}"):
            continue
        matrices = {size: Matrix.bare(*size, format) for size in (*many, *few)}
        seconds = budget.share(len(FORMATS) - i).left / 2
        tuning = tune_shapes(device, [Shape(m, 1) for m in matrices.values()], None, seconds)
        for size, rows in [(size, 1) for size in few] + [(size, 64 if short else 512) for size in many]:
            if not budget.allows(f"product {name} {size[0]} × {size[1]}"):
                continue
            shape = matrices[size]
            seconds = _chain(device, shape, rows, matvec if rows == 1 else matmul_nt, tuning, short)
            row = {"format": name, "rows": shape.rows, "columns": shape.columns, "seconds": seconds}
            if rows == 1:
                speed = shape.nbytes / seconds
                cut = vars(tuning.lanes_for(shape.format_name, shape.columns, shape.rows))
                out["matvec"].append(row | {"bytes_per_s": speed, "of_copy": speed / copy, "cut": cut})
                say(f"  matvec {name} {size}: {speed / 1e9:.0f} GB/s, {speed / copy:.0%} {cut}")
            else:
                rate = rows * shape.rows * shape.columns / seconds
                row |= {"vectors": rows, "multiply_adds_per_s": rate, "of_peak": rate / peak, "tiles": tuning.tiles}
                out["matmul"].append(row)
                say(f"  matmul {name} {size}: {rate / 1e12:.2f} T/s, {row['of_peak']:.0%}, tiles {tuning.tiles}")


def _chain(
    device: gpu.Device, shape: Matrix, rows: int, product: Callable[..., Any], tuning: gpu.Tuning, short: bool
) -> float:
    """Seconds of one product in a chain of at least ten."""
    copies = 1 if short else int(max(1, min(32, -(-_ROTATE_BYTES // shape.nbytes))))
    with device.ledger.tracking() as made:
        weights = [noise(empty_matrix(device, shape, tuning.order == "woven")) for _ in range(copies)]
        x = device.tensor(np.random.default_rng(0).standard_normal((rows, shape.columns)).astype(np.float32))
        y = device.empty((rows, shape.rows))
    rounds = -(-10 // copies)
    plan = device.record(lambda: [product(x, w, None, y) for _ in range(rounds) for w in weights], tuning)
    seconds = time_plans(device, {"": plan}, 5)[""] / (rounds * copies)
    plan.free()
    for buffer in made:
        device.free(buffer)
    return seconds


def model(device: gpu.Device, row: dict[str, Any], budget: Budget, short: bool, say: Say) -> None:
    """Measure the model of a row (``shape`` and ``dtype``) into it: decode, prompt and a profile, with a tuning that is
    measured first."""
    shape, dtype = row["shape"], row["dtype"]
    name = f"{shape} {dtype}"
    if not budget.allows(name):
        return
    tuning = tuned(device, shape, dtype, budget.left / 2, row, say)
    context = 1024 if short else 4096 + 512
    sizes = {"context": context, "at_once": 32 * (context - 256)}
    with (
        device.using(tuning),
        measure.open_subject(None, shape, device=device, dtype=DTYPES[dtype], **sizes) as subject,
    ):
        row["weight_bytes"] = subject.weight_bytes
        tokens, repeat = (8, 1) if short else (128, 2)
        for depth, batch in [(d, b) for d in ((128,) if short else (128, 4096)) for b in (1, 8, 32)]:
            if budget.allows(f"{name}, {batch} sequences after {depth}"):
                row["decode"].append(_decode(subject, batch, depth, tokens, repeat))
                say(f"  {name} x{batch} after {depth}: {row['decode'][-1]['tokens_per_s']:.0f} t/s")
        if budget.allows(f"{name}, prompt"):
            prompt = measure.run_prompt(subject, 128 if short else 512, 1 if short else 5)
            first = prompt.n_prompt / prompt.avg_ts
            row["prompt"] = {"tokens": prompt.n_prompt, "tokens_per_s": prompt.avg_ts, "first_token_s": first}
            say(f"  {name}: prompt {prompt.avg_ts:.0f} t/s")
        if budget.allows(f"{name}, profile"):
            found = profile.profile_step(subject, 128, 1, 2 if short else 5)
            row["profile"] = [vars(line) for line in found.lines]


def _decode(subject: Subject, batch: int, depth: int, tokens: int, repeat: int) -> dict[str, Any]:
    """Tokens a second through the engine. For a deep batch, whose prompts would take long, of GPU steps only."""
    step = profile.step_seconds(subject, depth, batch)
    row = {"batch": batch, "depth": depth, "step_s": step, "gpu_tokens_per_s": batch / step}
    if batch > 1 and depth > 1024:
        return row | {"tokens_per_s": batch / step, "engine": False}
    run = measure.run_generation(subject, tokens, depth, batch, repeat)
    speed = {"tokens_per_s": run.avg_ts, "stddev": run.stddev_ts, "engine": True}
    return row | speed | {"idle": 1 - step * run.avg_ts / batch, "chain_ts": run.chain_ts}
