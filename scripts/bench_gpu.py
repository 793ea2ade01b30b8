"""Measure a GPU in one run: its yardsticks, the kernels' share of them, models, and torch.

    scripts/bench_gpu OUT            everything; some minutes on a large GPU
    scripts/bench_gpu --short OUT    a smoke test: the smallest shape, few repetitions
    scripts/bench_gpu --only changes OUT    the kernels' variants, each beside the tuning: under nine minutes

Writes OUT/gpu.json after every part, and OUT/gpu.md at the end. Both name the parts that failed.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from gpu_changes import LIMITS, Budget, attention_alone, bursts, changes, gaps, llama_bench
from gpu_page import page

from llamagpu import gpu
from llamagpu.bench import Subject, measure, profile, yardsticks
from llamagpu.gpu.timing import time_plans
from llamagpu.kernels.matmul import matmul_nt
from llamagpu.kernels.matvec import matvec
from llamagpu.kernels.noise import noise
from llamagpu.model import prepare_shape
from llamagpu.model.layout import Matrix
from llamagpu.model.tuner import tune, tune_shapes
from llamagpu.model.tuner_products import Shape
from llamagpu.model.weights import empty_matrix
from llamagpu.version import __version__

FORMATS: dict[str, str | gpu.Affine] = {
    "f32": "f32",
    "bf16": "bf16",
    "f16": "f16",
    "int8": gpu.Affine(8, 64, "f16"),
    "int4": gpu.Affine(4, 64, "f16"),
}
DTYPES = {"f16": "float16", "int8": "int8", "int4": "int4"}
ROTATE_BYTES = 300_000_000  # weights that a chain cycles through: over four times the largest L2 cache


class Bench:
    """Measurements by section. ``short`` makes them a smoke test."""

    def __init__(
        self, folder: Path, short: bool, device: str, shapes: Sequence[str] = (), llama_bench: Sequence[str] = ()
    ):
        self.folder, self.short, self.asked, self.start = folder, short, device, time.perf_counter()
        self.out: dict[str, Any] = {"failed": {}, "models": []}
        every = ["smollm2-135m"] if short else ["llama-3.2-1b", "smollm2-135m", "llama-3.2-3b"]
        self.shapes = list(shapes) or every
        self.llama_bench = llama_bench

    def say(self, line: str) -> None:
        print(f"[{time.perf_counter() - self.start:6.1f} s] {line}", file=sys.stderr, flush=True)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Run a part, and record its failure instead of stopping the others."""
        self.say(name)
        try:
            yield
        except Exception as e:
            traceback.print_exc()
            self.out["failed"][name] = f"{type(e).__name__}: {e}"
        self.out["seconds"] = time.perf_counter() - self.start
        (self.folder / "gpu.json").write_text(json.dumps(self.out, indent=1) + "\n", encoding="utf-8")

    def run(self) -> dict[str, Any]:
        with gpu.open(self.asked) as device:
            with self.part("machine"):
                self.out["machine"] = machine(device)
            with self.part("yardsticks"):
                found = yardsticks(device)
                self.out |= {"copy_bytes_per_s": found.bandwidth, "multiply_adds_per_s": found.multiply_adds}
            with self.part("gap per dispatch"):
                self.out["gap"] = gaps(device, 200 if self.short else 1000)
            with self.part("products"):
                self.products(device)
        for shape in self.shapes:
            for dtype in DTYPES:
                with self.part(f"{shape} {dtype}"):
                    self.model(shape, dtype)
        with self.part("torch"):
            self.out["torch"] = self.torch()
        return self.out

    def run_changes(self) -> dict[str, Any]:
        """Each variant on and off, within the seconds of ``LIMITS``."""
        self.out |= {"changes": [], "bursts": [], "attention": [], "llama_bench": []}
        shape = self.shapes[0]
        with gpu.open(self.asked) as device, self.part("machine"):
            self.out["machine"] = machine(device)
        with self.part("attention"), gpu.open(self.asked) as device:
            self.out["attention"] = attention_alone(device, Budget(LIMITS["attention"]), self.short)
        dtypes = ("int4",) if self.short else tuple(DTYPES)
        for dtype in dtypes:
            with self.part(f"changes {dtype}"):
                limit = LIMITS["changes"] / len(dtypes)
                self.out["changes"] += changes(self.asked, shape, DTYPES[dtype], Budget(limit), self.short, self.say)
            with self.part(f"bursts {dtype}"):
                found = bursts(self.asked, shape, DTYPES[dtype], self.short)
                self.out["bursts"].append({"shape": shape, "dtype": dtype, "bursts": found})
        with self.part("llama-bench"):
            self.out["llama_bench"] = llama_bench(self.llama_bench, LIMITS["llama_bench"])
        return self.out

    def products(self, device: gpu.Device) -> None:
        """Measure products of 512 vectors, and of one with more weights than caches hold, tuned for each format."""
        few = [(1536, 576)] if self.short else [(4096, 14336), (128256, 4096)]
        many = [(576, 1536)] if self.short else [(8192, 2048), (2048, 8192)]
        vectors = 64 if self.short else 512
        self.out |= {"matvec": [], "matmul": []}
        for name, format in FORMATS.items():
            matrices = {size: Matrix.bare(*size, format) for size in (*many, *few)}
            tuning = tune_shapes(device, [Shape(m, 1) for m in matrices.values()])
            for size in few:
                shape = matrices[size]
                seconds = self.chain(device, shape, 1, matvec, tuning)
                speed = shape.nbytes / seconds
                row = {
                    "format": name,
                    "rows": shape.rows,
                    "columns": shape.columns,
                    "seconds": seconds,
                    "bytes_per_s": speed,
                }
                row |= {"of_copy": speed / self.out["copy_bytes_per_s"]}
                row |= {"cut": vars(tuning.lanes_for(shape.format_name, shape.columns, shape.rows))}
                self.out["matvec"].append(row)
                self.say(f"  matvec {name} {size}: {speed / 1e9:.0f} GB/s, {row['of_copy']:.0%} {row['cut']}")
            for size in many:
                shape = matrices[size]
                seconds = self.chain(device, shape, vectors, matmul_nt, tuning)
                rate = vectors * shape.rows * shape.columns / seconds
                row = {
                    "format": name,
                    "rows": shape.rows,
                    "columns": shape.columns,
                    "vectors": vectors,
                    "seconds": seconds,
                }
                row |= {"multiply_adds_per_s": rate, "of_peak": rate / self.out["multiply_adds_per_s"]}
                row |= {"tiles": tuning.tiles}
                self.out["matmul"].append(row)
                self.say(f"  matmul {name} {size}: {rate / 1e12:.2f} T/s, {row['of_peak']:.0%}, tiles {tuning.tiles}")

    def chain(
        self, device: gpu.Device, shape: Matrix, rows: int, product: Callable[..., Any], tuning: gpu.Tuning
    ) -> float:
        """Seconds of one product in a chain of at least ten."""
        copies = 1 if self.short else int(max(1, min(32, -(-ROTATE_BYTES // shape.nbytes))))
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

    def model(self, shape: str, dtype: str) -> None:
        """Measure a model's decode and prefill with a tuning measured for it."""
        with gpu.open(self.asked) as device:
            self.model_on(device, shape, dtype)

    def model_on(self, device: gpu.Device, shape: str, dtype: str) -> None:
        """Like ``model``, on an open device."""
        start = time.perf_counter()
        tuning = tune(device, prepare_shape(shape, DTYPES[dtype]).layout)
        row: dict[str, Any] = {"shape": shape, "dtype": dtype, "tune_s": time.perf_counter() - start}
        context = 1024 if self.short else 4096 + 512
        sizes = {"context": context, "at_once": 32 * (context - 256)}
        with (
            device.using(tuning),
            measure.open_subject(None, shape, device=device, dtype=DTYPES[dtype], **sizes) as subject,
        ):
            row |= {"tuning": str(tuning), "weight_bytes": subject.weight_bytes}
            self.say(f"  tuned in {row['tune_s']:.1f} s")
            tokens, repeat = (8, 1) if self.short else (128, 2)
            depths = (128,) if self.short else (128, 4096)
            row["decode"] = [self.decode(subject, b, d, tokens, repeat) for d in depths for b in (1, 8, 32)]
            prompt = measure.run_prompt(subject, 128 if self.short else 512, 1 if self.short else 5)
            row["prompt"] = {
                "tokens": prompt.n_prompt,
                "tokens_per_s": prompt.avg_ts,
                "first_token_s": prompt.n_prompt / prompt.avg_ts,
            }
            found = profile.profile_step(subject, 128, 1, 2 if self.short else 5)
            row["profile"] = [vars(line) for line in found.lines]
        self.out["models"].append(row)
        self.say(f"  {row['decode'][0]['tokens_per_s']:.0f} t/s, prompt {prompt.avg_ts:.0f} t/s")

    def decode(self, subject: Subject, batch: int, depth: int, tokens: int, repeat: int) -> dict[str, Any]:
        """Tokens a second through the engine. For a deep batch, whose prompts would take long, of GPU steps only."""
        step = profile.step_seconds(subject, depth, batch)
        row = {"batch": batch, "depth": depth, "step_s": step, "gpu_tokens_per_s": batch / step}
        if batch > 1 and depth > 1024:
            return row | {"tokens_per_s": batch / step, "engine": False}
        run = measure.run_generation(subject, tokens, depth, batch, repeat)
        idle = 1 - step * run.avg_ts / batch
        row |= {
            "tokens_per_s": run.avg_ts,
            "stddev": run.stddev_ts,
            "engine": True,
            "idle": idle,
            "chain_ts": run.chain_ts,
        }
        return row

    def torch(self) -> dict[str, Any]:
        """The same shapes in torch: float16 with CUDA graphs, or on the CPU without them."""
        import torch

        sys.path.insert(0, str(Path(__file__).resolve().parent))
        from torch_llama import TorchLlama

        cuda = torch.cuda.is_available()
        out: dict[str, Any] = {
            "version": torch.__version__,
            "device": "cuda" if cuda else "cpu",
            "graphs": cuda,
            "runs": [],
        }
        for shape in self.shapes:
            model = TorchLlama(shape, torch.float16 if cuda else torch.float32, out["device"])
            row: dict[str, Any] = {"shape": shape, "dtype": str(model.dtype)}
            row["decode"] = [
                {"batch": b, "depth": d, "tokens_per_s": model.decode(b, d, 100 if cuda else 3)}
                for d in ((128, 4096) if cuda else (128,))
                for b in (1, 8, 32)
            ]
            row["prompt_tokens_per_s"] = model.prompt(512 if cuda else 128, 20 if cuda else 1)
            out["runs"].append(row)
            self.say(f"  torch {shape}: {row['decode'][0]['tokens_per_s']:.0f} t/s")
            del model
            if cuda:
                torch.cuda.empty_cache()
        return out


def machine(device: gpu.Device) -> dict[str, Any]:
    """The adapter, its driver, versions and the system."""
    out = {
        "adapter": str(device.adapter),
        "driver": device.adapter.driver,
        "features": sorted(device.features),
        "subgroup_size": device.subgroup_size,
        "versions": gpu.version(),
        "llamagpu": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem", "--format=csv,noheader"]
    try:
        out["nvidia_smi"] = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        pass
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="a directory for gpu.json and gpu.md")
    parser.add_argument("--short", action="store_true", help="a smoke test: the smallest shape, few repetitions")
    parser.add_argument("--device", default="auto", help="the adapter, as for llamagpu")
    parser.add_argument("--shapes", default="", help="default: llama-3.2-1b,smollm2-135m,llama-3.2-3b")
    parser.add_argument("--only", choices=["changes"], help="measure variants of kernels only")
    parser.add_argument("--llama-bench", nargs="+", default=(), metavar="PATH", help="llama-bench, then GGUF files")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    shapes = options.shapes.split(",") if options.shapes else ()
    bench = Bench(options.out, options.short, options.device, shapes, options.llama_bench)
    results = bench.run_changes() if options.only else bench.run()
    (options.out / "gpu.md").write_text(page(results), encoding="utf-8")
    print(page(results))


if __name__ == "__main__":
    main()
