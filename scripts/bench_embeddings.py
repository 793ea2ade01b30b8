"""Compare embeddings with other engines on one machine, in one run: all-MiniLM-L6-v2, texts of mixed lengths.

    scripts/peers/setup .peers embeddings                   once: installs the engines and the model
    python scripts/bench_embeddings.py --peers .peers docs  measures; writes docs/embeddings.json, docs/embeddings.md

First, packs of this project are timed and profiled. Then every engine loads and embeds all texts once, which gives the
vectors to compare, and engines take turns, one repetition each, so a drift of the machine affects all alike. Engines
that are missing or fail are named.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from turns import (
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
BATCH = 32  # texts of a padded batch
WAYS = ("list", "single", "padded", "padded, sorted")
PACKS = (16, 32, 64, 128, 256, 512)  # rows of the packs that are timed
REFERENCE = "sentence-transformers"


def make_texts(model: Path, count: int) -> dict[str, Any]:
    """Texts of random English words that are one token each, so that their lengths are exact: 3 to 256 tokens, two of
    them special, log-normal with a median of 32."""
    from tokenizers import Tokenizer

    rng = np.random.default_rng(0)
    vocabulary = Tokenizer.from_file(str(model / "tokenizer.json")).get_vocab()
    words = sorted(w for w in vocabulary if re.fullmatch("[a-z]{2,}", w))
    lengths = np.clip(np.round(rng.lognormal(np.log(32), 0.9, count)), 3, 256).astype(int).tolist()
    return {"texts": [" ".join(rng.choice(words, n - 2)) for n in lengths], "lengths": lengths}


def filled(lengths: list[int]) -> int:
    """Tokens, if every text of a batch is as long as the longest."""
    batches = [lengths[i : i + BATCH] for i in range(0, len(lengths), BATCH)]
    return sum(len(batch) * max(batch) for batch in batches)


def entries(peers: Path, model: Path, scratch: Path) -> list[Entry]:
    """Every engine, device and format to measure."""
    ort = str(peers / "ortvenv/bin/python")
    out: list[Entry] = []

    def add(
        engine: str, backend: str, format: str, driver: str, command: list[str], ways: tuple[str, ...], **env: str
    ) -> None:
        files = [
            "--model",
            str(model),
            "--texts",
            str(scratch / "texts.json"),
            "--out",
            vectors_file(scratch, len(out)),
        ]
        command = [
            command[0],
            str(HERE / "peers" / command[1]),
            *files,
            "--dtype",
            format,
            "--backend",
            backend.lower(),
        ]
        out.append(Entry(engine, backend, format, driver, [*command, "--ways", ";".join(ways)], ways, env))

    ours, torch, onnx = (
        [sys.executable, "ours_embeddings.py"],
        [ort, "torch_embeddings.py"],
        [ort, "onnx_embeddings.py"],
    )
    add(REFERENCE, "CPU", "f32", "", torch, WAYS[:2])
    add("llamagpu", "WebGPU", "f32", SYSTEM_MESA, ours, WAYS)
    add("llamagpu", "WebGPU", "f16", SYSTEM_MESA, ours, WAYS[:1])
    add("llamagpu", "WebGPU", "8-bit", SYSTEM_MESA, ours, WAYS[:1])
    add("llamagpu", "WebGPU", "f32", NEW_MESA, ours, WAYS[:1], **new_mesa(peers))
    add("ONNX Runtime", "WebGPU", "f32", NEW_MESA, onnx, WAYS[:1], **onnx_webgpu(peers))
    add("ONNX Runtime", "CPU", "f32", "", onnx, WAYS[:2])
    return out


def vectors_file(scratch: Path, number: int) -> str:
    """The beginning of the names of an entry's vectors."""
    return str(scratch / f"vectors{number}")


def smallest_cosines(scratch: Path, count: int) -> list[dict[str, float]]:
    """For every entry and way, the smallest cosine of a text's vector with that of sentence-transformers."""

    def unit(file: Path) -> np.ndarray:
        x = np.load(file).astype(np.float64)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    reference = Path(f"{vectors_file(scratch, 0)}-list.npy")
    if not reference.exists():
        return [{} for _ in range(count)]
    expected, out = unit(reference), []
    for number in range(count):
        files = {way: Path(f"{vectors_file(scratch, number)}-{way}.npy") for way in WAYS}
        out.append({w: float((unit(f) * expected).sum(1).min()) for w, f in files.items() if f.exists()})
    return out


def profile_packs(model: Path, runs: int = 5) -> dict[str, Any]:
    """Seconds of packs by their rows, of the plan and with the host's work; and of two packs by kernel. Texts have 32
    tokens, that of the smallest pack 16."""
    sys.path.insert(0, str(HERE.parent))
    from llamagpu.bench.profile import short_name
    from llamagpu.engine.encoder_model import EncoderModel
    from llamagpu.gpu.timeline import profile
    from llamagpu.gpu.timing import time_calls, time_plans
    from llamagpu.model.packs import Encoded

    packs, kernels = [], {}
    with EncoderModel(model, dtype="float32") as loaded:
        encoder, device = loaded._session.encoder, loaded.device
        for rows in PACKS:
            length = min(rows, 32)
            pack = [Encoded((101, *[2000] * (length - 2), 102), (0,) * length)] * (rows // length)
            plan = device.call(lambda rows=rows: encoder.plan(rows, ("mean",)))

            def run(pack: list[Encoded] = pack) -> None:
                device.call(lambda: [r.result() for r in encoder.launch(pack, ("mean",))])

            whole, alone = time_calls(device, {"": run}, runs)[""], time_plans(device, {"": plan}, runs)[""]
            packs.append({"rows": rows, "dispatches": len(plan.dispatches), "plan_s": alone, "pack_s": whole})
            if rows in (PACKS[0], PACKS[-1]):
                times: dict[str, float] = defaultdict(float)
                for span, dispatch in profile(device, plan, runs).kernels:
                    times[short_name(dispatch.program)] += (span.end - span.begin) / runs
                kernels[str(rows)] = dict(sorted(times.items(), key=lambda item: -item[1]))
    return {"packs": packs, "kernels": kernels}


def table(result: dict[str, Any]) -> list[str]:
    """The lines of the table of engines."""
    lines = [
        "| engine | driver | format | texts | tokens/s | × | smallest cosine |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    rows = [r for r in result["rows"] if "list" in r]
    base = {r["driver"]: r["list"]["median"] for r in rows if r["engine"] == "llamagpu" and r["format"] == "f32"}
    for r in sorted(rows, key=lambda r: (r["backend"] == "CPU", r["engine"] != "llamagpu", r["driver"] != SYSTEM_MESA)):
        ours = base.get(r["driver"] or SYSTEM_MESA)
        for way in (w for w in WAYS if w in r):
            ratio = "" if ours is None else f"{ours / r[way]['median']:.2f}"
            cosine = f"{r[way]['cosine']:.7f}" if "cosine" in r[way] and r["engine"] != REFERENCE else ""
            cells = [f"{r['engine']}, {r['backend']}", r["driver"], r["format"], way, speed(r[way]), ratio, cosine]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def advice(result: dict[str, Any]) -> list[str]:
    """A paragraph that names the better choice on a CPU."""
    speeds = {(r["engine"], r["backend"], r["format"], r["driver"]): r.get("list") for r in result["rows"]}
    ours = speeds.get(("llamagpu", "WebGPU", "f32", SYSTEM_MESA))
    cpu = {name: s["median"] for (name, backend, *_), s in speeds.items() if backend == "CPU" and s}
    if ours is None or not cpu:
        return []
    faster = " and ".join(f"{name} is {s / ours['median']:.1f} times as fast" for name, s in sorted(cpu.items()))
    return ["", f"Without a GPU, embed on the CPU: there {faster} as llamagpu on this software adapter."]


def profile_lines(found: dict[str, Any]) -> list[str]:
    """The lines of the section about packs."""
    packs = found["packs"]
    least, most = packs[0], packs[-1]
    lines = [
        "",
        "## Where the time goes",
        "",
        "llamagpu's packs in f32 on the system's driver, one at a time. Texts have 32 tokens, that of the smallest "
        f"pack 16. `plan` is the time of the {most['dispatches']} dispatches; `pack` adds the host's work and the way "
        "of the vectors to the host.",
        "",
        "| rows | plan (ms) | pack (ms) | tokens/s |",
        "| ---: | ---: | ---: | ---: |",
        *(
            f"| {p['rows']} | {p['plan_s'] * 1e3:.1f} | {p['pack_s'] * 1e3:.1f} | {p['rows'] / p['pack_s']:.0f} |"
            for p in packs
        ),
        "",
        f"A row takes {least['plan_s'] / least['rows'] * 1e3:.2f} ms in the smallest plan, "
        f"{most['plan_s'] / most['rows'] * 1e3:.2f} ms in the largest.",
        "",
        "Kernels by their share, from timestamps:",
        "",
        "| kernel | " + " | ".join(f"{rows} rows (ms) | share" for rows in found["kernels"]) + " |",
        "| --- |" + " ---: | ---: |" * len(found["kernels"]),
    ]
    for name in found["kernels"][str(most["rows"])]:
        cells = [name]
        for times in found["kernels"].values():
            seconds = times.get(name, 0.0)
            cells += [f"{seconds * 1e3:.2f}", f"{seconds / sum(times.values()):.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def page(result: dict[str, Any]) -> str:
    """The results in Markdown."""
    n, tokens = result["lengths"], result["tokens"]
    ahead, mixed = result["padded_sorted_tokens"] / tokens, result["padded_tokens"] / tokens
    lines = [
        "# Embeddings beside other engines",
        "",
        f"all-MiniLM-L6-v2, {result['texts']} texts of {n['smallest']} to {n['largest']} tokens (median "
        f"{n['median']:.0f}, mean {n['mean']:.0f}; {tokens:,} in all). Lengths are log-normal, texts are random words "
        f"of English. Speeds count the tokens of the texts, not padding; they are medians of {result['rounds']} "
        "repetitions taken in turns in one run, with the smallest and largest in brackets. `×` is llamagpu's speed "
        "with the list in f32, on the same driver, divided by the row's; for engines on the CPU, on the system's "
        "driver. The cosine is that with sentence-transformers' vector of the same text.",
        "",
        f"{about_machine(result['machine'])} Before the run, the load average was {result['load']:.1f}.",
        "",
        *table(result),
        "",
        "- list: one call with all texts. llamagpu packs them without padding; sentence-transformers and ONNX Runtime "
        f"sort them by length and pad batches of {BATCH}.",
        "- single: a call for every text.",
        f"- padded: llamagpu's own kernels do the work of padding. Every text of a batch of {BATCH}, in the given "
        f"order, is filled up with words to the longest of its batch: {mixed:.2f} times as many tokens; if the texts "
        f"are sorted by length first, {ahead:.2f} times as many.",
        *advice(result),
        *profile_lines(result["profile"]),
        *missing_and_versions(result["rows"]),
        "",
        f"Measured by `python scripts/bench_embeddings.py docs --texts {result['texts']} --rounds {result['rounds']}`; "
        "`scripts/peers/setup .peers embeddings` installs the engines.",
    ]
    return "\n".join(lines) + "\n"


def run(peers: Path, count: int, rounds: int) -> dict[str, Any]:
    """Measure everything."""
    model, load = peers / "models" / "minilm", os.getloadavg()[0]
    given = make_texts(model, count)
    lengths, profile = given["lengths"], profile_packs(model)
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        (scratch / "texts.json").write_text(json.dumps(given), encoding="utf-8")
        every = entries(peers, model, scratch)
        try:
            measure(every, rounds)
        finally:
            stop(every)
        rows = [record(entry) for entry in every]
        for row, cosines in zip(rows, smallest_cosines(scratch, len(every)), strict=True):
            for way in set(cosines) & set(row):
                row[way]["cosine"] = cosines[way]
    ends = {"smallest": min(lengths), "largest": max(lengths)}
    return {
        "machine": machine(),
        "load": load,
        "rounds": rounds,
        "texts": count,
        "tokens": sum(lengths),
        "padded_tokens": filled(lengths),
        "padded_sorted_tokens": filled(sorted(lengths)),
        "lengths": ends | {"median": statistics.median(lengths), "mean": statistics.mean(lengths)},
        "rows": rows,
        "profile": profile,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="a directory for embeddings.json and embeddings.md")
    parser.add_argument(
        "--peers", type=Path, default=Path(".peers"), help="the directory that scripts/peers/setup made"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=96)
    o = parser.parse_args()
    o.out.mkdir(parents=True, exist_ok=True)
    result = run(o.peers.resolve(), o.texts, o.rounds)
    (o.out / "embeddings.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (o.out / "embeddings.md").write_text(page(result), encoding="utf-8")
    print(page(result))


if __name__ == "__main__":
    main()
