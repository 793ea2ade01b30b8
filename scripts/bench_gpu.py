"""Measure a GPU in one run of under nine minutes: its yardsticks, the kernels' share of them, models, other engines.

    scripts/bench_gpu OUT                   everything
    scripts/bench_gpu --only changes OUT    first checks, then the kernels' variants, each beside the tuning
    scripts/bench_gpu --short OUT           a smoke test: the smallest shape, few repetitions
    scripts/bench_gpu --llama-bench PROGRAM --gguf FILE [--gguf FILE ...] OUT
                                            llama.cpp's own benchmark as well; the others take these options too

Every section has its seconds, and what they do not suffice for is named. Writes OUT/gpu.json and OUT/gpu.md after
every measurement; both name the parts that failed. A part that hangs is ended with the run, when its minutes are over.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import gpu_checks
import gpu_models
from gpu_budget import Budget, Schedule
from gpu_changes import bursts, changes, gaps
from gpu_models import DTYPES
from gpu_page import page
from gpu_peers import llama_bench, torch_runs

from llamagpu import gpu
from llamagpu.bench import yardsticks
from llamagpu.model import prepare_shape
from llamagpu.model.sources.random import SHAPES
from llamagpu.version import __version__

# Seconds of each section, in a run of nine minutes.
LIMITS = {"opening": 20, "yardsticks": 30, "products": 100, "models": 240, "torch": 70, "llama-bench": 60}
CHANGES_LIMITS = {"opening": 20, "attention": 30, "checks": 80, "tuning": 90}
CHANGES_LIMITS |= {"changes": 180, "bursts": 50, "llama-bench": 70}


class Bench:
    """Measurements by section. ``short`` makes them a smoke test.

    Attributes:
        out: the results so far.
    """

    def __init__(
        self,
        folder: Path,
        short: bool = False,
        device: str = "auto",
        shapes: Sequence[str] = (),
        only: str | None = None,
        seconds: float = Schedule.FULL,
        llama_bench: Path | None = None,
        models: Sequence[Path] = (),
    ):
        self.folder, self.short, self.asked, self._start = folder, short, device, time.perf_counter()
        self._only, self._program, self._models = only, llama_bench, models
        every = ["smollm2-135m"] if short else ["llama-3.2-1b", "smollm2-135m", "llama-3.2-3b"]
        self.shapes = list(shapes) or every
        self._schedule = Schedule(CHANGES_LIMITS if only else LIMITS, seconds)
        self.out: dict[str, Any] = {"seconds": 0.0, "failed": {}, "models": [], "left_out": self._schedule.left_out}
        self._part, self._saved = "opening", json.dumps(self.out)

    def say(self, line: str) -> None:
        """Print a line on standard error, and save the results so far."""
        print(f"[{time.perf_counter() - self._start:6.1f} s] {line}", file=sys.stderr, flush=True)
        self._save()

    def _save(self) -> None:
        self.out["seconds"] = time.perf_counter() - self._start
        self._saved = json.dumps(self.out, indent=1) + "\n"
        _write(self.folder, self._saved)

    def end(self) -> None:
        """End the process in the middle of a part; the results so far are saved. Call it from another thread."""
        results = json.loads(self._saved)
        results["failed"][self._part] = "it was running when the time was over"
        _write(self.folder, json.dumps(results, indent=1) + "\n")
        print(page(results), flush=True)
        os._exit(1)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Run a part, and record its failure instead of stopping the others."""
        self._part = name
        self.say(name)
        try:
            yield
        except Exception as e:
            traceback.print_exc()
            self.out["failed"][name] = f"{type(e).__name__}: {e}"
        self._save()

    def run(self) -> dict[str, Any]:
        """All sections, or the changes alone; returns the results."""
        if self._opens():
            if self._only:
                self._checks()
                self._changes()
            else:
                self._kernels()
                self._every_model()
        if not self._only:
            with self.part("torch"):
                torch_runs(self.shapes, self._budget("torch"), self.out.setdefault("torch", {}), self.say)
        self._llama_bench()
        return self.out

    def _budget(self, section: str) -> Budget:
        return self._schedule.budget(section)

    def _opens(self) -> bool:
        """Describe the machine. Whether its GPU can be opened."""
        if self._budget("opening").allows("all"):
            with self.part("machine"), gpu.open(self.asked) as device:
                self.out["machine"] = machine(device)
        return "machine" in self.out

    def _kernels(self) -> None:
        """Yardsticks and products."""
        with gpu.open(self.asked) as device:
            with self.part("yardsticks"):
                budget = self._budget("yardsticks")
                if budget.allows("yardsticks"):
                    found = yardsticks(device)
                    self.out |= {"copy_bytes_per_s": found.bandwidth, "multiply_adds_per_s": found.multiply_adds}
                if budget.allows("gap per dispatch"):
                    self.out["gap"] = gaps(device, 200 if self.short else 1000)
            with self.part("products"):
                if "copy_bytes_per_s" in self.out:
                    sticks = self.out["copy_bytes_per_s"], self.out["multiply_adds_per_s"]
                    gpu_models.products(device, *sticks, self._budget("products"), self.short, self.out, self.say)

    def _every_model(self) -> None:
        budget, rows = self._budget("models"), [(shape, dtype) for shape in self.shapes for dtype in DTYPES]
        for i, (shape, dtype) in enumerate(rows):
            with self.part(f"{shape} {dtype}"), gpu.open(self.asked) as device:
                row: dict[str, Any] = {"shape": shape, "dtype": dtype, "decode": []}
                self.out["models"].append(row)
                gpu_models.model(device, row, budget.share(len(rows) - i), self.short, self.say)

    @property
    def _dtypes(self) -> tuple[str, ...]:
        return ("int4",) if self.short else tuple(DTYPES)

    def _checks(self) -> None:
        """The first checks: attention, then reductions, prefetching and arrivals."""
        layouts = {d: prepare_shape(self.shapes[0], DTYPES[d]).layout for d in self._dtypes}
        config = next(iter(layouts.values())).config
        with gpu.open(self.asked) as device:
            with self.part("attention"):
                budget = self._budget("attention")
                self.out["attention"] = gpu_checks.attention_alone(device, config, budget, self.short)
            budget = self._budget("checks")
            with self.part("arrivals"):
                self.out["arrivals"] = gpu_checks.arrivals(device, budget, self.short)
            for name in ("prefetching", "reductions"):
                self.out[name] = []
                for dtype, layout in layouts.items():
                    with self.part(f"{name} {dtype}"):
                        self.out[name] += getattr(gpu_checks, name)(device, layout, budget, self.short)

    def _changes(self) -> None:
        """A tuning for every dtype, each variant beside it, and steps a submission."""
        shape, short, chosen = self.shapes[0], self.short, {}
        self.out |= {"tunings": [], "changes": [], "bursts": []}
        budget = self._budget("tuning")
        for i, dtype in enumerate(self._dtypes):
            with self.part(f"tuning {dtype}"), gpu.open(self.asked) as device:
                chosen[dtype], row = device.tuning, {"shape": shape, "dtype": dtype}
                if not short and budget.allows(f"tuning {dtype}"):
                    seconds = budget.share(len(self._dtypes) - i).left
                    chosen[dtype] = gpu_models.tuned(device, shape, dtype, seconds, row, self.say)
                    self.out["tunings"].append(row)
        budget = self._budget("changes")
        for i, (dtype, tuning) in enumerate(chosen.items()):
            with self.part(f"changes {dtype}"), gpu.open(self.asked) as device:
                share = budget.share(len(chosen) - i)
                self.out["changes"] += changes(device, shape, DTYPES[dtype], tuning, share, short, self.say)
        budget = self._budget("bursts")
        for dtype, tuning in chosen.items():
            with self.part(f"bursts {dtype}"), gpu.open(self.asked) as device:
                found = bursts(device, shape, DTYPES[dtype], tuning, budget, short)
                self.out["bursts"].append({"shape": shape, "dtype": dtype, "bursts": found})

    def _llama_bench(self) -> None:
        budget, rows = self._budget("llama-bench"), self.out.setdefault("llama_bench", [])
        sizes, repeat = ((16, 4, 16), 1) if self.short else ((512, 128, 128), 3)
        for i, model in enumerate(self._models):
            if self._program is not None and budget.allows(f"llama-bench {model.name}", 2.0):
                with self.part(f"llama-bench {model.name}"):
                    seconds = budget.share(len(self._models) - i).left
                    llama_bench(self._program, model, seconds, rows, sizes, repeat)


def _write(folder: Path, results: str) -> None:
    """Write results, as JSON's text and as a page."""
    (folder / "gpu.json").write_text(results, encoding="utf-8")
    (folder / "gpu.md").write_text(page(json.loads(results)), encoding="utf-8")


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


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="a directory for gpu.json and gpu.md")
    parser.add_argument("--short", action="store_true", help="a smoke test: the smallest shape, few repetitions")
    parser.add_argument("--device", default="auto", help="the adapter, as for llamagpu")
    parser.add_argument("--shapes", default="", help="default: llama-3.2-1b,smollm2-135m,llama-3.2-3b")
    parser.add_argument("--only", choices=["changes"], help="first checks and variants of kernels only")
    parser.add_argument("--minutes", type=float, default=Schedule.FULL / 60, help="of the whole run; 9 by default")
    parser.add_argument("--llama-bench", type=Path, metavar="PROGRAM", help="llama.cpp's llama-bench, for --gguf")
    parser.add_argument("--gguf", type=Path, action="append", default=[], metavar="FILE", help="may be repeated")
    options = parser.parse_args(arguments)
    if bool(options.llama_bench) != bool(options.gguf):
        parser.error("--llama-bench and --gguf need one another")
    options.shapes = [name for name in options.shapes.split(",") if name]
    if unknown := [name for name in options.shapes if name not in SHAPES]:
        parser.error(f"there is no shape {unknown[0]}; known: {', '.join(SHAPES)}")
    for path in filter(None, (options.llama_bench, *options.gguf)):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    if options.minutes <= 0:
        parser.error("--minutes must be positive")
    return options


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    seconds = 60 * options.minutes
    bench = Bench(
        options.out,
        options.short,
        options.device,
        options.shapes,
        options.only,
        seconds,
        options.llama_bench,
        options.gguf,
    )
    watch = threading.Timer(0.98 * seconds, bench.end)
    watch.daemon = True
    watch.start()
    results = bench.run()
    watch.cancel()
    print(page(results))


if __name__ == "__main__":
    main()
