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
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from turns import (
    MISSING,
    NEW_MESA,
    SYSTEM_MESA,
    Entry,
    about_machine,
    machine,
    measure,
    missing_and_versions,
    new_mesa,
    onnx_webgpu,
    record,
    speed,
    stop,
)

HERE = Path(__file__).resolve().parent
TESTS = ("decode", "prompt")
FORMATS = ("f16", "8-bit", "4-bit")


@dataclass
class LlamaBench(Entry):
    """llama.cpp's own benchmark, which starts anew for every repetition."""

    sizes: dict[str, int] = field(default_factory=dict)  # tokens of a test

    def start(self) -> None:
        """Check that it was built."""
        if not Path(self.command[0]).exists():
            self.failure = MISSING

    def take(self, test: str) -> None:
        """Run one repetition."""
        if self.failure:
            return
        tokens = str(self.sizes[test])
        sizes = ["-p", tokens, "-n", "0"] if test == "prompt" else ["-p", "0", "-n", tokens]
        command = [*self.command, *sizes, "-r", "1", "-o", "jsonl"]
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
        self.samples.setdefault(test, []).extend(row["samples_ts"])


def entries(peers: Path, prompt: int, decode: int) -> list[Entry]:
    """Every engine, device and format to measure."""
    threads = str(os.cpu_count() or 1)
    new, dawn = new_mesa(peers), onnx_webgpu(peers)
    tiny = new | {
        "LD_LIBRARY_PATH": f"{peers / 'tg'}:{new['LD_LIBRARY_PATH']}",
        "WEBGPU_BACKEND": "WGPUBackendType_Vulkan",
    }
    tiny |= {"PARALLEL": "0", "DEV": "WEBGPU", "CACHEDB": str(peers / "tinygrad.db")}
    sizes = ["--peers", str(peers), "--prompt", str(prompt), "--decode", str(decode)]

    def runner(python: Path | str, script: str, dtype: str, backend: str = "") -> list[str]:
        return [str(python), str(HERE / "peers" / script), *sizes, "--dtype", dtype, "--backend", backend]

    def llama(build: str, format: str, layers: str, flash: str) -> list[str]:
        model = {"f16": "f16", "8-bit": "q8_0", "4-bit": "q4_0"}[format]
        command = [str(peers / "llamacpp" / build / "bin" / "llama-bench"), "-t", threads, "-ngl", layers, "-fa", flash]
        return [*command, "-m", str(peers / "models" / f"smol135m-{model}.gguf")]

    def bench(backend: str, format: str, driver: str, command: list[str], env: dict[str, str]) -> LlamaBench:
        tokens = {"prompt": prompt, "decode": decode}
        return LlamaBench("llama.cpp", backend, format, driver, command, TESTS, env, sizes=tokens)

    # Flash attention is on where llama.cpp is faster with it: on the CPU, not on this Vulkan device.
    out: list[Entry] = []
    ort, tools = peers / "ortvenv/bin/python", peers / "tools/bin/python"
    visible = {"GGML_VK_VISIBLE_DEVICES": "0"}
    for format in FORMATS:
        for driver, env in ((SYSTEM_MESA, {}), (NEW_MESA, new)):
            ours = runner(sys.executable, "ours.py", format)
            out.append(Entry("llamagpu", "WebGPU", format, driver, ours, TESTS, env))
            out.append(bench("Vulkan", format, driver, llama("build", format, "99", "0"), env | visible))
        webgpu = runner(ort, "onnx_llama.py", format, "webgpu")
        out.append(Entry("ONNX Runtime", "WebGPU", format, NEW_MESA, webgpu, TESTS, dawn))
        if format == "f16":
            tinygrad = runner(peers / "tgvenv/bin/python", "tinygrad_llama.py", format)
            out.append(Entry("tinygrad", "WebGPU", format, NEW_MESA, tinygrad, TESTS, tiny))
        out.append(bench("CPU", format, "", llama("build-cpu", format, "0", "1"), {}))
        if format != "f16":
            out.append(Entry("ONNX Runtime", "CPU", format, "", runner(ort, "onnx_llama.py", format, "cpu"), TESTS))
    out.append(Entry("ONNX Runtime", "CPU", "f32", "", runner(ort, "onnx_llama.py", "f32", "cpu"), TESTS))
    torch = tools if tools.exists() else Path(sys.executable)
    out += [Entry("transformers", "CPU", d, "", runner(torch, "torch_cpu.py", d), TESTS) for d in ("f32", "bf16")]
    return out


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
        about_machine(m),
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
            own = r["engine"] == "llamagpu" or base is None
            cells += [speed(r[test]), "" if own else f"{base[test]['median'] / r[test]['median']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += missing_and_versions(rows)
    lines += ["", "Measured by `python scripts/bench_peers.py docs`; `scripts/peers/setup` builds the other engines."]
    return "\n".join(lines) + "\n"


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
        measure(every, o.rounds)
    finally:
        stop(every)
    sizes = {"prompt": o.prompt, "decode": o.decode, "rounds": o.rounds}
    result = {"machine": machine(), **sizes, "rows": [record(e) for e in every]}
    (o.out / "peers.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (o.out / "peers.md").write_text(page(result), encoding="utf-8")
    print(page(result))
    peers_chart(result, o.out / "peers.svg")


if __name__ == "__main__":
    main()
