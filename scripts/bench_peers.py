"""Compare this project with other engines on one machine, in one run: decode and prefill of SmolLM2-135M's shape.

    scripts/peers/setup .peers                         once: builds and installs them
    python scripts/bench_peers.py --peers .peers docs  measures; writes docs/peers.json, docs/peers.md, docs/peers.svg

Every engine loads once. Then engines take turns, one repetition each, so a drift of the machine affects all alike. The
table has the median and the spread. Engines that are missing or fail are named.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TESTS = ("decode", "prompt")
FORMATS = ("f16", "8-bit", "4-bit")
SYSTEM_MESA, NEW_MESA = "Mesa of the system", "Mesa 25"


@dataclass
class Entry:
    """One engine on one device in one format."""

    engine: str
    backend: str  # WebGPU, Vulkan or CPU
    format: str
    driver: str
    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    bench: list[str] = field(default_factory=list)  # command of llama-bench, which starts for every repetition
    samples: dict[str, list[float]] = field(default_factory=lambda: {test: [] for test in TESTS})
    device: str = ""
    version: str = ""
    failure: str = ""
    process: subprocess.Popen[str] | None = None

    @property
    def name(self) -> str:
        """Engine and backend."""
        return f"{self.engine}, {self.backend}"

    def start(self) -> None:
        """Load the engine and warm it up, so that ``take`` measures at once."""
        environment = os.environ | self.env
        if not Path(self.command[0]).exists():
            self.failure = "not set up"
        elif not self.bench:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            self.process = subprocess.Popen(self.command, text=True, env=environment, **pipes)  # type: ignore[call-overload]
            about = self._answer()
            self._pause()
            self.device, self.version = about.get("device", ""), about.get("version", "")

    def take(self, test: str, tokens: int) -> None:
        """Run one repetition."""
        if self.failure:
            return
        if self.bench:
            self._llama_bench(test, tokens)
        elif self.process is not None and self.process.stdin is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.stdin.write(test + "\n")
            self.process.stdin.flush()
            answer = self._answer()
            self._pause()
            if answer:
                self.samples[test].append(answer["tokens_per_s"])

    def _pause(self) -> None:
        """Suspend its process until its next turn, because idle threads of some engines spin."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)

    def stop(self) -> None:
        """End its process."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:  # engines print other lines too
            if line.startswith("{"):
                return dict(json.loads(line))
        error = "" if self.process.stderr is None else self.process.stderr.read().strip()
        self.failure = error.splitlines()[-1][:200] if error else "the process ended"
        return {}

    def _llama_bench(self, test: str, tokens: int) -> None:
        sizes = ["-p", str(tokens), "-n", "0"] if test == "prompt" else ["-p", "0", "-n", str(tokens)]
        command = [*self.bench, *sizes, "-r", "1", "-o", "jsonl"]
        done = subprocess.run(command, env=os.environ | self.env, capture_output=True, text=True)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not rows:
            self.failure = (done.stderr.strip().splitlines() or ["the process ended"])[-1][:200]
            return
        row = rows[0]
        vulkan = self.backend == "Vulkan"
        if vulkan != (row["backends"] == "Vulkan") or (vulkan and row["n_gpu_layers"] < 99):
            self.failure = f"it ran on {row['backends']}"  # llama-bench silently falls back to the CPU
            return
        self.device = row["gpu_info"] if vulkan else f"{row['cpu_info']}, {row['n_threads']} threads"
        self.version = f"llama.cpp {row['build_commit']}"
        self.samples[test] += row["samples_ts"]


def entries(peers: Path, prompt: int, decode: int) -> list[Entry]:
    """Every engine, device and format to measure."""
    threads = str(os.cpu_count() or 1)
    mesa = str(peers / "mesa25" / "root" / "usr" / "lib" / "x86_64-linux-gnu")
    new = {"LD_LIBRARY_PATH": mesa, "VK_ICD_FILENAMES": str(peers / "mesa25" / "icd.json")}
    dawn = new | {"ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1"}
    tiny = new | {"LD_LIBRARY_PATH": f"{peers / 'tg'}:{mesa}", "WEBGPU_BACKEND": "WGPUBackendType_Vulkan"}
    tiny |= {"PARALLEL": "0", "DEV": "WEBGPU", "CACHEDB": str(peers / "tinygrad.db")}
    sizes = ["--peers", str(peers), "--prompt", str(prompt), "--decode", str(decode)]

    def runner(python: Path | str, script: str, dtype: str, backend: str = "") -> list[str]:
        return [str(python), str(HERE / "peers" / script), *sizes, "--dtype", dtype, "--backend", backend]

    def llama(build: str, format: str, layers: str, flash: str) -> list[str]:
        model = {"f16": "f16", "8-bit": "q8_0", "4-bit": "q4_0"}[format]
        command = [str(peers / "llamacpp" / build / "bin" / "llama-bench"), "-t", threads, "-ngl", layers, "-fa", flash]
        return [*command, "-m", str(peers / "models" / f"smol135m-{model}.gguf")]

    # Flash attention is on where llama.cpp is faster with it: on the CPU, not on this Vulkan device.
    out = []
    ort, tools = peers / "ortvenv/bin/python", peers / "tools/bin/python"
    visible = {"GGML_VK_VISIBLE_DEVICES": "0"}
    for format in FORMATS:
        for driver, env in ((SYSTEM_MESA, {}), (NEW_MESA, new)):
            out.append(Entry("llamagpu", "WebGPU", format, driver, runner(sys.executable, "ours.py", format), env))
            vulkan = llama("build", format, "99", "0")
            out.append(Entry("llama.cpp", "Vulkan", format, driver, vulkan, env | visible, vulkan))
        out.append(Entry("ONNX Runtime", "WebGPU", format, NEW_MESA, runner(ort, "onnx.py", format, "webgpu"), dawn))
        if format == "f16":
            tinygrad = runner(peers / "tgvenv/bin/python", "tinygrad_llama.py", format)
            out.append(Entry("tinygrad", "WebGPU", format, NEW_MESA, tinygrad, tiny))
        cpu = llama("build-cpu", format, "0", "1")
        out.append(Entry("llama.cpp", "CPU", format, "", cpu, {}, cpu))
        if format != "f16":
            out.append(Entry("ONNX Runtime", "CPU", format, "", runner(ort, "onnx.py", format, "cpu")))
    out.append(Entry("ONNX Runtime", "CPU", "f32", "", runner(ort, "onnx.py", "f32", "cpu")))
    torch = tools if tools.exists() else Path(sys.executable)
    out += [Entry("transformers", "CPU", d, "", runner(torch, "torch_cpu.py", d)) for d in ("f32", "bf16")]
    return out


def machine() -> dict[str, str]:
    """Processor and system."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"processor": model, "cores": str(os.cpu_count()), "system": platform.platform()}


def record(entry: Entry) -> dict[str, Any]:
    """An entry's results."""
    row: dict[str, Any] = {k: getattr(entry, k) for k in ("engine", "backend", "format", "driver", "device", "version")}
    for test, samples in entry.samples.items():
        if samples:
            row[test] = {"median": statistics.median(samples), "samples": samples}
    return row | ({"failure": entry.failure} if entry.failure else {})


def page(result: dict[str, Any]) -> str:
    """The results in Markdown: the machine, a table, missing engines, and versions."""
    rows, m = result["rows"], result["machine"]
    ours = {(r["format"], r["driver"]): r for r in rows if r["engine"] == "llamagpu" and "failure" not in r}
    lines = [
        "# Beside other engines",
        "",
        "SmolLM2-135M's shape with random weights. Decode is one sequence that generates "
        f"{result['decode']} tokens from an empty context; prefill is a prompt of {result['prompt']} tokens. Speeds "
        f"are medians of {result['rounds']} repetitions taken in turns in one run, with the smallest and largest in "
        "brackets. `×` is llamagpu's speed divided by the engine's, on the same driver and in the same format. "
        "For engines on the CPU, it uses llamagpu on the system's driver; for f32 and bf16, llamagpu in f16.",
        "",
        f"{m['processor']}, {m['cores']} cores, {m['system']}; no GPU: Vulkan and WebGPU run on Mesa's llvmpipe.",
        "",
        "![tokens a second](peers.svg)",
        "",
        "| format | engine | driver | decode t/s | × | prefill t/s | × |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    order = {f: i for i, f in enumerate((*FORMATS, "bf16", "f32"))}
    for r in sorted(
        rows, key=lambda r: (order[r["format"]], r["backend"] == "CPU", r["engine"] != "llamagpu", r["driver"])
    ):
        if "failure" in r:
            continue
        base = ours.get((r["format"], r["driver"] or SYSTEM_MESA)) or ours.get(("f16", SYSTEM_MESA))
        cells = [r["format"], f"{r['engine']}, {r['backend']}", r["driver"]]
        for test in TESTS:
            speed = r[test]
            ratio = "" if r["engine"] == "llamagpu" or base is None else f"{base[test]['median'] / speed['median']:.2f}"
            spread = f"{min(speed['samples']):.1f} to {max(speed['samples']):.1f}"
            cells += [f"{speed['median']:.1f} ({spread})", ratio]
        lines.append("| " + " | ".join(cells) + " |")
    missing = [
        f"{r['engine']}, {r['backend']}, {r['format']} ({r['driver']}): {r['failure']}" for r in rows if "failure" in r
    ]
    if missing:
        lines += ["", "Missing: " + "; ".join(missing) + "."]
    versions = sorted(
        {f"{r['engine']}, {r['backend']}: {r['version']}, on {r['device']}" for r in rows if r["version"]}
    )
    lines += ["", "Versions:", "", *(f"- {v}" for v in versions)]
    lines += ["", "Measured by `python scripts/bench_peers.py docs`; `scripts/peers/setup` builds the other engines."]
    return "\n".join(lines) + "\n"


def measure(every: list[Entry], tokens: dict[str, int], rounds: int) -> None:
    """Run all repetitions, in turns."""
    for entry in every:
        entry.start()
        print(f"{entry.name}, {entry.format}, {entry.driver}: {entry.failure or 'ready'}", file=sys.stderr, flush=True)
    for number in range(rounds):
        for entry in every:
            for test in TESTS:
                entry.take(test, tokens[test])
            last = ", ".join(f"{test} {entry.samples[test][-1]:.1f}" for test in TESTS if entry.samples[test])
            print(f"{number + 1}: {entry.name}, {entry.format}, {entry.driver}: {last}", file=sys.stderr, flush=True)


def chosen(every: Iterable[Entry], only: str) -> list[Entry]:
    """The entries of the engines named in ``only``, or all entries if it is empty."""
    names = [name.strip().lower() for name in only.split(",") if name.strip()]
    return [e for e in every if not names or e.engine.lower() in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="a directory for peers.json, peers.md and peers.svg")
    parser.add_argument(
        "--peers", type=Path, default=Path(".peers"), help="the directory that scripts/peers/setup made"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=128, help="tokens in the prompt")
    parser.add_argument("--decode", type=int, default=16, help="tokens to generate")
    parser.add_argument("--only", default="", help="engines to measure, separated by commas")
    o = parser.parse_args()
    from llamagpu.bench.plots import check_plot, peers_chart

    o.out.mkdir(parents=True, exist_ok=True)
    check_plot(o.out / "peers.svg")  # fail now: measuring takes half an hour
    every = chosen(entries(o.peers.resolve(), o.prompt, o.decode), o.only)
    try:
        measure(every, {"prompt": o.prompt, "decode": o.decode}, o.rounds)
    finally:
        for entry in every:
            entry.stop()
    sizes = {"prompt": o.prompt, "decode": o.decode, "rounds": o.rounds}
    result = {"machine": machine(), **sizes, "rows": [record(e) for e in every]}
    (o.out / "peers.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (o.out / "peers.md").write_text(page(result), encoding="utf-8")
    print(page(result))
    peers_chart(result, o.out / "peers.svg")


if __name__ == "__main__":
    main()
