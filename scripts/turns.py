"""Engines in processes of their own that are measured in turns; the shared part of bench_peers.py and
bench_embeddings.py. The processes are the runners in scripts/peers."""

from __future__ import annotations

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SYSTEM_MESA, NEW_MESA = "Mesa of the system", "Mesa 25"
MISSING = "not set up"


@dataclass
class Entry:
    """One engine on one device in one format.

    Attributes:
        backend: WebGPU, Vulkan or CPU.
        tests: the names of what it measures in every turn.
        samples: tokens a second of every repetition of a test.
        limit: seconds that it may take to answer, because some engines hang.
        tokens: greedy tokens, of engines that tell them.
    """

    engine: str
    backend: str
    format: str
    driver: str
    command: list[str]
    tests: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    device: str = ""
    version: str = ""
    failure: str = ""
    process: subprocess.Popen[str] | None = None
    limit: float = 600.0
    tokens: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Engine and backend."""
        return f"{self.engine}, {self.backend}"

    def start(self) -> None:
        """Load the engine and warm it up, so that ``take`` measures at once."""
        if not Path(self.command[0]).exists():
            self.failure = MISSING
            return
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(self.command, text=True, env=os.environ | self.env, **pipes)  # type: ignore[call-overload]
        about = self._answer()
        self._pause()
        self.device, self.version = about.get("device", ""), about.get("version", "")
        self.tokens = about.get("tokens", [])

    def take(self, test: str) -> None:
        """Run one repetition."""
        if self.failure or self.process is None or self.process.stdin is None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(test + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        self._pause()
        if answer:
            self.samples.setdefault(test, []).append(answer["tokens_per_s"])

    def stop(self) -> None:
        """End its process."""
        if self.process is not None:
            with self.process:  # closes the pipes
                self.process.kill()

    def _pause(self) -> None:
        """Suspend its process until its next turn, because idle threads of some engines spin."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        watchdog = threading.Timer(self.limit, self.process.kill)
        watchdog.start()
        try:
            for line in self.process.stdout:  # engines print other lines too
                if line.startswith("{"):
                    return dict(json.loads(line))
        finally:
            late = not watchdog.is_alive()
            watchdog.cancel()
        error = "" if self.process.stderr is None else self.process.stderr.read().strip()
        self.failure = error.splitlines()[-1][:200] if error else "the process ended"
        if late:
            self.failure = f"no answer for {self.limit:g} s"
        return {}


def new_mesa(peers: Path) -> dict[str, str]:
    """The environment that chooses the Mesa which scripts/peers/setup unpacked."""
    directory = peers / "mesa25"
    libraries = directory / "root" / "usr" / "lib" / "x86_64-linux-gnu"
    return {"LD_LIBRARY_PATH": str(libraries), "VK_ICD_FILENAMES": str(directory / "icd.json")}


def onnx_webgpu(peers: Path) -> dict[str, str]:
    """The environment of ONNX Runtime's WebGPU provider, which runs on Dawn."""
    return new_mesa(peers) | {"ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1"}


def machine() -> dict[str, str]:
    """Processor and system."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"processor": model, "cores": str(os.cpu_count()), "system": platform.platform()}


def about_machine(m: dict[str, str]) -> str:
    """A sentence about the machine."""
    return f"{m['processor']}, {m['cores']} cores, {m['system']}; no GPU: Vulkan and WebGPU run on Mesa's llvmpipe."


def measure(every: list[Entry], rounds: int) -> None:
    """Run all repetitions, in turns."""
    for entry in every:
        entry.start()
        print(f"{entry.name}, {entry.format}, {entry.driver}: {entry.failure or 'ready'}", file=sys.stderr, flush=True)
    for number in range(rounds):
        for entry in every:
            for test in entry.tests:
                entry.take(test)
            last = ", ".join(f"{test} {samples[-1]:.1f}" for test, samples in entry.samples.items())
            print(f"{number + 1}: {entry.name}, {entry.format}, {entry.driver}: {last}", file=sys.stderr, flush=True)


def stop(every: list[Entry]) -> None:
    """End all processes."""
    for entry in every:
        entry.stop()


def record(entry: Entry) -> dict[str, Any]:
    """An entry's results."""
    row: dict[str, Any] = {k: getattr(entry, k) for k in ("engine", "backend", "format", "driver", "device", "version")}
    for test, samples in entry.samples.items():
        row[test] = {"median": statistics.median(samples), "samples": samples}
    return row | ({"failure": entry.failure} if entry.failure else {})


def speed(found: dict[str, Any]) -> str:
    """A median, with the smallest and the largest sample in brackets."""
    return f"{found['median']:.1f} ({min(found['samples']):.1f} to {max(found['samples']):.1f})"


def missing_and_versions(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a page: engines that did not run, with the reason, and the versions of those that did."""
    missing = [
        f"{r['engine']}, {r['backend']}, {r['format']} ({r['driver']}): {r['failure']}" for r in rows if "failure" in r
    ]
    lines = ["", "Missing: " + "; ".join(missing) + "."] if missing else []
    versions = sorted(
        {f"{r['engine']}, {r['backend']}: {r['version']}, on {r['device']}" for r in rows if r["version"]}
    )
    return [*lines, "", "Versions:", "", *(f"- {v}" for v in versions)]
