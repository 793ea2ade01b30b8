#!/usr/bin/env python3
"""Embed many short texts with a small random BERT, and measure that the memory is flat and that kills lose nothing.

    python scripts/soak_embeddings.py                  # 100,000 texts
    python scripts/soak_embeddings.py --rows 3000

Runs `llamagpu embed --input … --output out.npy` twice: once undisturbed, while it measures the resident memory of the
process, and once killed (SIGKILL) at three points and started again each time. Prints both, and ends with 1 if the
memory grows by more than 2 % after the first tenth of the rows, or if the two outputs differ in a byte.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import random_encoders  # noqa: E402

HIDDEN = 16  # elements of a vector
GROWTH = 1.02
KILLS = (0.2, 0.5, 0.8)  # of the rows


def prepare(folder: Path, rows: int) -> tuple[Path, Path]:
    """A model, and texts of 0 to 5 words."""
    sizes = {"hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_attention_heads": 2, "num_hidden_layers": 1}
    raw = random_encoders.config("bert", **sizes)
    model = random_encoders.write_model(folder / "model", raw, random_encoders.tensors(raw, 1), special=True)
    source = folder / "texts.jsonl"
    with source.open("w") as file:
        for i in range(rows):
            text = " ".join(f"a{3 + (7 * i + 13 * k) % 200}" for k in range(i % 6))
            file.write(json.dumps({"text": text}) + "\n")
    return model, source


def started(model: Path, source: Path, output: Path) -> subprocess.Popen[bytes]:
    """A process that embeds."""
    command = [sys.executable, "-m", "llamagpu", "embed", "-m", str(model), "--input", str(source)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*command, "--output", str(output)], env=environment, stderr=subprocess.DEVNULL)


def watched(process: subprocess.Popen[bytes], output: Path) -> Iterator[tuple[int, int]]:
    """The rows in the journal, nearly, and the process's resident bytes, until it ends."""
    journal = output.with_name(output.name + ".partial")
    seen = psutil.Process(process.pid)
    rows = 0
    while process.poll() is None:
        try:
            rows = max(rows, journal.stat().st_size // (4 * HIDDEN + len('{"row": 10000}\n')))
            processes = (seen, *seen.children(recursive=True))  # the model is in a child
            yield rows, sum(process.memory_info().rss for process in processes)
        except (FileNotFoundError, psutil.NoSuchProcess):
            pass
        time.sleep(0.02)


def undisturbed(model: Path, source: Path, output: Path, rows: int) -> float:
    """Run to the end; the growth of the resident memory after a tenth of the rows."""
    process, start = started(model, source, output), time.perf_counter()
    found = list(watched(process, output))
    assert process.returncode == 0
    print(f"{rows:,} rows in {time.perf_counter() - start:.0f} s")
    steady = [used for done, used in found if done >= rows / 10]
    for part in range(0, 100, 10):
        at = [used for done, used in found if part <= 100 * done / rows < part + 10]
        if at:
            print(
                f"  {part:3d} to {part + 10:3d} % of the rows: {min(at) / 1e6:.1f} to {max(at) / 1e6:.1f} MB resident"
            )
    growth = max(steady) / steady[0]
    later = f"{max(steady) / 1e6:.1f} MB at most later: × {growth:.4f}"
    print(f"{steady[0] / 1e6:.1f} MB after a tenth of the rows, {later}")
    return growth


def killed(model: Path, source: Path, output: Path, rows: int) -> None:
    """Run with kills, and to the end."""
    for share in KILLS:
        process = started(model, source, output)
        for done, _ in watched(process, output):
            if done >= share * rows:
                break
        assert process.poll() is None, "it ended before the kill"
        process.send_signal(signal.SIGKILL)
        process.wait()
        journal = output.with_name(output.name + ".partial").read_bytes()
        kept = journal.count(b'{"row": ')
        print(f"killed with {kept:,} rows in the journal")
    assert started(model, source, output).wait() == 0


def soak(folder: Path, rows: int) -> tuple[float, bool]:
    """The growth of the memory, and whether both outputs are the same."""
    model, source = prepare(folder, rows)
    whole, broken = folder / "whole.npy", folder / "broken.npy"
    growth = undisturbed(model, source, whole, rows)
    killed(model, source, broken, rows)
    found = np.load(whole, mmap_mode="r")
    same = whole.read_bytes() == broken.read_bytes() and found.shape == (rows, HIDDEN)
    print(f"outputs of {whole.stat().st_size:,} bytes, {'equal' if same else 'NOT equal'}")
    return growth, same and bool(np.isfinite(found).all())


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        growth, same = soak(Path(folder), rows)
    return 0 if growth <= GROWTH and same else 1


if __name__ == "__main__":
    sys.exit(main())
