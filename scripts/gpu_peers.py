"""Other engines on the same GPU for ``bench_gpu``: torch, and llama.cpp by its own benchmark."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpu_budget import Budget

from llamagpu.bench.measure import test_name


class PeerError(Exception):
    """A peer failed, or did not end in time."""


def torch_runs(shapes: Sequence[str], budget: Budget, out: dict[str, Any], say: Callable[[str], None]) -> None:
    """The shapes in torch, into ``out``: float16 with CUDA graphs, or on the CPU without them."""
    import torch
    from torch_llama import TorchLlama

    cuda = torch.cuda.is_available()
    out |= {"version": torch.__version__, "device": "cuda" if cuda else "cpu", "graphs": cuda, "runs": []}
    for shape in shapes:
        if not budget.allows(f"torch {shape}"):
            continue
        model = TorchLlama(shape, torch.float16 if cuda else torch.float32, out["device"])
        row: dict[str, Any] = {"shape": shape, "dtype": str(model.dtype), "decode": []}
        out["runs"].append(row)
        for depth, batch in [(d, b) for d in ((128, 4096) if cuda else (128,)) for b in (1, 8, 32)]:
            if budget.allows(f"torch {shape}, {batch} sequences after {depth}"):
                speed = model.decode(batch, depth, 100 if cuda else 3)
                row["decode"].append({"batch": batch, "depth": depth, "tokens_per_s": speed})
                say(f"  torch {shape} x{batch} after {depth}: {speed:.0f} t/s")
        if budget.allows(f"torch {shape}, prompt"):
            row["prompt_tokens_per_s"] = model.prompt(512 if cuda else 128, 20 if cuda else 1)
        del model
        if cuda:
            torch.cuda.empty_cache()


def llama_bench(
    program: Path, model: Path, seconds: float, out: list[dict[str, Any]], sizes: tuple[int, int, int], repeat: int
) -> None:
    """llama.cpp's own benchmark on a GGUF file: its results, as they come, into ``out``.

    Args:
        seconds: time after which it is killed.
        sizes: tokens of the prompt, tokens to generate, and tokens before both.

    Raises:
        PeerError: it failed, did not end in time, had no result, or used no GPU.
    """
    prompt, tokens, depth = (str(n) for n in sizes)
    command = [str(program), "-m", str(model), "-ngl", "99", "-p", prompt, "-n", tokens, "-d", depth]
    # Files and a session of its own: neither a child nor a full pipe can hold up the end.
    with tempfile.TemporaryFile("w+") as results, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*command, "-r", str(repeat), "-o", "jsonl"], stdout=results, stderr=errors, start_new_session=True
        )
        try:
            code = process.wait(max(1.0, seconds))
            failure = f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            failure = f"it did not end within {seconds:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        results.seek(0)
        errors.seek(0)
        rows = [json.loads(line) for line in results if line.startswith("{") and line.endswith("}\n")]
        said = errors.read().strip().splitlines()
    if rows and not rows[0]["gpu_info"]:  # it falls back silently, and still names its GPU backend
        raise PeerError(f"it ran on the CPU: {rows[0]['cpu_info']}")
    out += [_result(model, row) for row in rows]
    if failure or not rows:
        raise PeerError(": ".join([failure or "no result", *said[-1:]]))


def _result(model: Path, row: dict[str, Any]) -> dict[str, Any]:
    """A line of llama-bench."""
    return {
        "file": model.name,
        "type": row["model_type"],
        "backend": f"{row['backends']}, {row['gpu_info']}",
        "commit": row["build_commit"],
        "test": test_name(row["n_prompt"], row["n_gen"], row["n_depth"], 1),
        "tokens_per_s": row["avg_ts"],
    }
