#!/usr/bin/env python3
"""Use models for a long time, and watch memory and objects: makes docs/soak.json and docs/soak.md.

    python scripts/soak.py docs --minutes 30

Three threads generate, chat, embed and cancel at random on two models of one device. Between them, models are closed
and loaded again, and the device is lost. Every result is compared with that of an undisturbed call. After each round,
resident memory, bytes on the device, native objects, threads and file handles are noted.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
import faults  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
import random_encoders  # noqa: E402

from llamagpu import LLM, Embedder, gpu  # noqa: E402
from llamagpu.gpu import native, recovery  # noqa: E402
from llamagpu.version import __version__  # noqa: E402

PROMPTS = ["Once upon a time", "The little dog ran", "One day, a girl named Lily", "Tom had a red ball. " * 20]
CALLS = 40  # of each thread in a round
THREADS = 3


class Subject:
    """Two models on a device, and what their calls must return."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.device = gpu.open()
        self.llm, self.embedder = self._opened()
        self.texts = [" ".join(f"a{i}" for i in range(n)) for n in (1, 7, 30, 90)]
        self.expected = [[call(i) for i in range(4)] for call in self.calls()]
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()

    def _opened(self) -> tuple[LLM, Embedder]:
        return LLM(device=self.device), Embedder(self._folder, device=self.device, pooling="mean")

    def calls(self) -> list[Callable[[int], Any]]:
        """Calls that give the same for the same number."""
        llm, embedder = self.llm, self.embedder
        return [
            lambda i: llm.generate(PROMPTS[i], max_tokens=12).token_ids,
            lambda i: llm.generate(PROMPTS[i], max_tokens=12, temperature=0.8, top_k=40, seed=i).token_ids,
            lambda i: llm.chat([{"role": "user", "content": PROMPTS[i]}], max_tokens=8, temperature=0.0).token_ids,
            lambda i: [r.token_ids for r in llm.generate(PROMPTS[: i + 1], max_tokens=6)],
            lambda i: embedder.encode(self.texts[: i + 1]).tolist(),
        ]

    def work(self, seed: int) -> None:
        """Some calls at random, one after another."""
        draw = random.Random(seed)
        for _ in range(CALLS):
            kind, i = draw.randrange(6), draw.randrange(4)
            try:
                if kind == 5:
                    stream = self.llm.stream(PROMPTS[i], max_tokens=200, ignore_eos=True)
                    next(stream)
                    stream.close()
                    self.done["cancelled"] += 1
                    continue
                found = self.calls()[kind](i)
                self.done["calls"] += 1
                if not faults.same(np.asarray(found) if kind == 4 else found, self._wanted(kind, i)):
                    self.wrong.append(f"call {kind} of {i} gave another result")
            except Exception as e:
                self.wrong.append(f"call {kind} of {i}: {type(e).__name__}: {e}")

    def _wanted(self, kind: int, i: int) -> Any:
        wanted = self.expected[kind][i]
        return np.asarray(wanted) if kind == 4 else wanted

    def round(self, number: int) -> None:
        """All threads at once, while the device is lost; then the models are loaded again."""
        threads = [threading.Thread(target=self.work, args=(1000 * number + n,)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        time.sleep(random.Random(number).random())
        faults.lose(self.device)
        self.done["losses"] += 1
        for thread in threads:
            thread.join()
        self.llm.close()
        self.embedder.close()
        self.llm, self.embedder = self._opened()
        self.done["reloads"] += 1

    def close(self) -> None:
        """Free all."""
        self.llm.close()
        self.embedder.close()
        self.device.close()


def figures(device: gpu.Device) -> dict[str, int]:
    """What must not grow."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps for later is not in use
    process = psutil.Process()
    return {
        "resident MB": process.memory_info().rss >> 20,
        "bytes on the device": device.ledger.held(),
        "native objects": sum(native.object_counts().values()),
        "threads": process.num_threads(),
        "file handles": process.num_fds(),
    }


def page(found: dict[str, Any]) -> str:
    """The text of docs/soak.md."""
    d = found["done"]
    lines = [
        "# A long run",
        "",
        f"{found['minutes']:.0f} minutes, {found['rounds']} rounds: {d['calls']:,} calls of three threads on two",
        "models of one device (text, chats, batches, vectors),",
        f"{d['cancelled']:,} cancelled streams, {d['losses']:,} losses of the device in the middle of calls,",
        f"and {d['reloads']:,} times both models closed and loaded again.",
        f"Errors, and results that differed from an undisturbed call: {found['wrong']}.",
        "",
        "| after a round | tenth of the run | most later | growth |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in found["early"]:
        early, late = found["early"][name], found["late"][name]
        lines.append(f"| {name} | {early:,} | {late:,} | {100 * (late - early) / early:+.1f} % |")
    lines += [
        "",
        f"llamagpu {found['version']} on {found['adapter']}.",
        f"Made by `python scripts/soak.py docs --minutes {found['minutes']:.0f}`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run for the given time, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    os.environ["LLAMAGPU_TUNING"] = "built-in"
    recovery.AGAIN_SECONDS = 0.0
    begin, seen, raw = time.monotonic(), [], random_encoders.CONFIGS["bert"]
    with tempfile.TemporaryDirectory() as folder:
        random_encoders.write_model(Path(folder), raw, random_encoders.tensors(raw, 1))
        subject = Subject(Path(folder))
        adapter = str(subject.device.adapter)
        while time.monotonic() - begin < 60 * options.minutes:
            subject.round(len(seen))
            seen.append((time.monotonic() - begin, figures(subject.device)))
            print(f"{seen[-1][0]:7.1f} s {seen[-1][1]} wrong: {len(subject.wrong)}", flush=True)
        subject.close()
    tenth = [f for seconds, f in seen if seconds <= 6 * options.minutes] or [seen[0][1]]
    later = [f for seconds, f in seen if seconds > 6 * options.minutes] or [seen[-1][1]]
    found = {
        "version": __version__,
        "adapter": adapter,
        "minutes": options.minutes,
        "rounds": len(seen),
        "done": dict(subject.done),
        "wrong": len(subject.wrong),
        "early": {name: max(f[name] for f in tenth) for name in tenth[0]},
        "late": {name: max(f[name] for f in later) for name in later[0]},
    }
    (options.out / "soak.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (options.out / "soak.md").write_text(page(found), encoding="utf-8")
    print(*subject.wrong[:20], sep="\n")
    sys.exit(bool(subject.wrong))


if __name__ == "__main__":
    main()
