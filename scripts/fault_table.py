#!/usr/bin/env python3
"""Make docs/recovery.json and docs/recovery.md: losses of the device at many points, and kills of isolated models.

    python scripts/fault_table.py docs [--kills 40]

Each scenario of tests/faults.py runs once undisturbed, then once for every injected loss. Times are those of this
machine: from the loss to the first error or to the log's line that the device works again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
import faults  # noqa: E402

from llamagpu import LLM, gpu  # noqa: E402
from llamagpu.engine import isolated  # noqa: E402
from llamagpu.gpu import recovery  # noqa: E402
from llamagpu.version import __version__  # noqa: E402

PARTS = (0.0, 0.5, 0.9)  # of a point's calls
FEWER = {"tuning": ("submit", "read")}  # points of scenarios that take long, each in the middle of its calls
PROMPT = "Once upon a time"


class Recoveries(logging.Handler):
    """The seconds that recoveries took, from the log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seconds: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "works again after" in record.msg and isinstance(record.args, tuple):
            self.seconds.append(float(str(record.args[0])))


def losses(name: str, heard: Recoveries) -> list[dict[str, Any]]:
    """A row for each point of a scenario."""
    rows = []
    with faults.SCENARIOS[name]() as run:
        expected = run()
        for point in FEWER.get(name, faults.POINTS):
            count = faults.calls(run, point)
            row = {"scenario": name, "point": point, "injected": 0, "survived": 0, "same": 0, "seconds": 0.0}
            for at in (
                sorted({int(part * (count - 1)) for part in ((0.5,) if name in FEWER else PARTS)}) if count else ()
            ):
                heard.seconds.clear()
                fault = faults.Fault(point, at)
                try:
                    with fault.injected():
                        found = run()
                    good, same = True, faults.same(found, expected)
                except Exception as e:
                    print(f"{name}, {point} {at}: {type(e).__name__}: {e}", file=sys.stderr)
                    good = same = False
                if fault.fired:
                    row["injected"] += 1
                    row["survived"] += good
                    row["same"] += same
                    row["seconds"] = max([row["seconds"], *heard.seconds])
            if row["injected"]:
                rows.append(row)
                print(row, flush=True)
    return rows


def kills(count: int, heard: Recoveries) -> dict[str, Any]:
    """Aborts of an isolated model's process, one for each generation, after one more token each time."""
    row = {"scenario": "isolated", "point": "abort", "injected": 0, "survived": 0, "same": 0, "seconds": 0.0}
    with LLM(isolate=True) as llm:
        expected = llm.generate(PROMPT, max_tokens=count + 5).token_ids
        for after in range(count):
            heard.seconds.clear()
            stream = llm.stream(PROMPT, max_tokens=count + 5)
            for _ in range(after):
                next(stream)
            os.kill(llm._session._supervisor._process.pid, signal.SIGABRT)
            row["injected"] += 1
            try:
                row["same"] += stream.result.token_ids == expected
                row["survived"] += 1
            except Exception as e:
                print(f"kill after {after}: {e}", file=sys.stderr)
            row["seconds"] = max([row["seconds"], *heard.seconds])
    print(row, flush=True)
    return row


def final() -> float:
    """Seconds from a second loss within a minute to the error of a thread that waits."""
    again, recovery.AGAIN_SECONDS = recovery.AGAIN_SECONDS, 60.0
    try:
        with LLM() as llm:
            faults.lose(llm.device)
            llm.generate(PROMPT, max_tokens=2)
            stream = llm.stream(PROMPT, max_tokens=400)
            next(stream)
            faults.lose(llm.device)
            begin = time.monotonic()
            try:
                _ = stream.result
            except Exception:
                return time.monotonic() - begin
            raise SystemExit("A second loss within a minute gave no error.")
    finally:
        recovery.AGAIN_SECONDS = again


def page(found: dict[str, Any]) -> str:
    """The text of docs/recovery.md."""
    lines = [
        "# Lost devices",
        "",
        "A driver that resets, runs out of memory or is updated takes its device away. llamagpu opens the device",
        "again, loads the models on it again, and continues every generation and every embedding from its tokens.",
        "The log says so, and streams only pause. `recover=False` switches it off. A second loss within a minute is",
        "final: every thread that waits gets a `DeviceLostError`.",
        "",
        "- Tensors, plans, events and bound sessions of before the loss are errors that say so. New ones work.",
        "- Text is the same as without the loss, greedy and sampled, as far as a recomputed prompt has the same best",
        "  token: its logits may differ in their last bits.",
        "- wgpu-native ends the process if a device is lost inside `submit`, which nothing can catch. With",
        "  `isolate=True`, `LLM`, `Embedder` and `CrossEncoder` keep the model in a process of its own. It is started",
        "  again, and goes on from the tokens. `generate --input`, `embed --input` and `rank --input` do so.",
        "",
        "## Injected losses",
        "",
        "The native device is destroyed right before a call, or the isolated process is aborted. `survived` counts",
        "runs without an error, `same` those with the results of an undisturbed run.",
        "",
        "| scenario | lost before | injected | survived | same | slowest recovery (s) |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for r in found["rows"]:
        counts = f"{r['injected']} | {r['survived']} | {r['same']} | {r['seconds']:.2f}"
        lines.append(f"| {r['scenario'].replace('_', ' ')} | {r['point']} | {counts} |")
    total = {key: sum(r[key] for r in found["rows"]) for key in ("injected", "survived", "same")}
    lines += [
        f"| all | | {total['injected']} | {total['survived']} | {total['same']} | |",
        "",
        f"The error of a second loss came after {found['final']:.3f} s. A recovery takes as long as loading the model.",
        "",
        f"llamagpu {found['version']} on {found['adapter']}. Made by `python scripts/fault_table.py docs`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=40)
    options = parser.parse_args()
    os.environ["LLAMAGPU_TUNING"], os.environ["LLAMAGPU_CACHE"] = "built-in", tempfile.mkdtemp()
    logging.getLogger("llamagpu").addHandler(heard := Recoveries())
    recovery.AGAIN_SECONDS = isolated.AGAIN_SECONDS = 0.0
    rows = [row for name in faults.SCENARIOS for row in losses(name, heard)]
    rows.append(kills(options.kills, heard))
    with gpu.open() as device:
        adapter = str(device.adapter)
    found = {"version": __version__, "adapter": adapter, "rows": rows, "final": final()}
    (options.out / "recovery.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (options.out / "recovery.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
