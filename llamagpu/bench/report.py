"""Benchmark results as tables and records. Fields that llama-bench has too are named as there."""

from __future__ import annotations

import csv
import io
import json
import statistics
from datetime import UTC, datetime
from typing import Any

from llamagpu import gpu
from llamagpu.bench.measure import COUNTED_TOKENS, Run, Subject
from llamagpu.bench.parts import attention_macs, weight_macs
from llamagpu.bench.yardsticks import Yardsticks
from llamagpu.version import __version__


def record(subject: Subject, run: Run, sticks: Yardsticks, first_token_s: float | None) -> dict[str, Any]:
    """One run as flat fields."""
    steps = run.n_gen or 1  # passes over the weights
    step_s = statistics.fmean(run.samples_ns) / 1e9 / steps
    out: dict[str, Any] = {
        "n_prompt": run.n_prompt,
        "n_gen": run.n_gen,
        "n_depth": run.n_depth,
        "n_batch": run.n_batch,
        "test": run.test,
        "test_time": datetime.now(UTC).isoformat(timespec="seconds"),
        "avg_ns": int(statistics.fmean(run.samples_ns)),
        "stddev_ns": int(statistics.stdev(run.samples_ns)) if len(run.samples_ns) > 1 else 0,
        "avg_ts": run.avg_ts,
        "stddev_ts": run.stddev_ts,
        "samples_ns": run.samples_ns,
        "samples_ts": run.samples_ts,
        "copy_bytes_per_s": sticks.bandwidth,
        "multiply_adds_per_s": sticks.multiply_adds,
        "read_bytes_per_s": run.read_bytes / step_s,
        "bandwidth_fraction": run.read_bytes / step_s / sticks.bandwidth,
        "macs_per_s": run.macs * run.avg_ts,
        "macs_fraction": run.macs * run.avg_ts / sticks.multiply_adds,
        "read_bytes_per_step": run.read_bytes,
        "chain_ts": run.chain_ts or None,
        "chain_fraction": run.avg_ts / run.chain_ts if run.chain_ts else None,
        "tokens": run.n_gen * run.n_batch or run.n_prompt,
        "start_to_first_token_s": first_token_s,
    }
    return _circumstances(subject) | out | _parts(subject, run) | _counts(run)


def _circumstances(subject: Subject) -> dict[str, Any]:
    """The versions, the adapter and the model."""
    return {
        "build_number": __version__,
        "backends": "WebGPU",
        "gpu_info": str(subject.device.adapter),
        "versions": gpu.version(),
        "model_filename": subject.name,
        "model_type": f"{subject.model.config.model_type} {subject.dtype}",
        "dtype": subject.dtype,
        "model_size": subject.weight_bytes,
        "model_n_params": subject.parameters,
        "type_k": subject.model.sizes.kv_dtype,
        "type_v": subject.model.sizes.kv_dtype,
    }


def _parts(subject: Subject, run: Run) -> dict[str, Any]:
    names = ("weights_macs_per_s", "attention_macs_per_s", "attention_to_weights", "encode_us", "encode_objects_us")
    if run.parts is None:
        return dict.fromkeys(names)
    c, p = subject.model.config, run.parts
    positions = max(run.n_depth, 1) + run.n_gen // 2 + 1
    weights, attention = weight_macs(c) / p.chain_s, attention_macs(c, positions) / p.attention_s
    return dict(
        zip(names, (weights, attention, attention / weights, p.encode_s * 1e6, p.encode_objects_s * 1e6), strict=True)
    )


def _counts(run: Run) -> dict[str, Any]:
    names = (
        "dispatches_per_token",
        "objects_per_token",
        "bytes_up_per_token",
        "bytes_down_per_token",
        "pipelines_per_token",
    )
    if run.counted is None:
        return dict.fromkeys(names)
    c = run.counted
    values = (c.dispatches, sum(c.objects.values()), c.bytes["up"], c.bytes["down"], c.pipelines)
    return {name: value / COUNTED_TOKENS for name, value in zip(names, values, strict=True)}


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: llama-bench's columns, then shares of the adapter's yardsticks and of the bare products."""
    head = ["model", "size", "params", "backend", "test", "t/s", "GB/s", "of copy", "G MAC/s", "of peak", "of chain"]
    rows = [head, ["---", *["---:"] * 2, "---", "---:", *["---:"] * 6]]
    for r in records:
        share = r["chain_fraction"]
        rows.append(
            [
                f"{r['model_filename']} {r['dtype']}",
                f"{r['model_size'] / 2**20:.2f} MiB",
                f"{r['model_n_params'] / 1e6:.2f} M",
                r["backends"],
                r["test"],
                f"{r['avg_ts']:.2f} ± {r['stddev_ts']:.2f}",
                f"{r['read_bytes_per_s'] / 1e9:.2f}",
                f"{r['bandwidth_fraction']:.0%}",
                f"{r['macs_per_s'] / 1e9:.2f}",
                f"{r['macs_fraction']:.0%}",
                "" if share is None else f"{share:.0%}",
            ]
        )
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def details(records: list[dict[str, Any]]) -> str:
    """Facts beside the table: the yardsticks, and the parts and counts of each generation."""
    last, first = records[-1], records[0]["start_to_first_token_s"]
    lines = [
        f"{last['gpu_info']} · {last['versions']}",
        f"copy {last['copy_bytes_per_s'] / 1e9:.2f} GB/s, multiply-adds {last['multiply_adds_per_s'] / 1e9:.2f} G/s "
        f"(measured in this run) · process start to first token {first:.2f} s",
    ]
    for r in records:
        if r["attention_macs_per_s"] is not None:
            lines.append(
                f"{r['dtype']} {r['test']}: weights {r['weights_macs_per_s'] / 1e9:.2f} G MAC/s, "
                f"attention {r['attention_macs_per_s'] / 1e9:.2f} ({r['attention_to_weights']:.2f} times that); "
                f"{r['read_bytes_per_step'] / 1e6:.2f} MB read per token; encoding a step takes "
                f"{r['encode_us']:.0f} µs ({r['encode_objects_us']:.0f} through objects)"
            )
        if r["dispatches_per_token"] is not None:
            lines.append(
                f"  per token: {r['dispatches_per_token']:g} dispatches, {r['objects_per_token']:g} objects created, "
                f"{r['bytes_up_per_token']:g} bytes up and {r['bytes_down_per_token']:g} down, "
                f"{r['pipelines_per_token']:g} pipelines"
            )
    return "\n".join(lines)


def as_text(records: list[dict[str, Any]], form: str) -> str:
    """Records as ``md``, ``csv``, ``json`` or ``jsonl``."""
    if form == "md":
        return table(records)
    if form == "json":
        return json.dumps(records, indent=2) + "\n"
    if form == "jsonl":
        return "".join(json.dumps(r) + "\n" for r in records)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()
