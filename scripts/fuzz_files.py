"""Fuzz the files of models: thousands of mutants of each file go through the real entry points, without a GPU.

    python scripts/fuzz_files.py                       # 50,000 safetensors headers, 20,000 of each other file
    python scripts/fuzz_files.py --count 500 tokenizer.json config.json
    python scripts/fuzz_files.py --seed 7 templates    # expressions of chat templates

A mutant may load, or raise one of this project's errors, within 1 s and 64 MB (templates: 2 s, and 256 MB). Each batch
runs in a process of its own, so that a hang or a crash is counted too. The exit code is 1 if anything was found.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import hostile
import hostile_templates

LLAMA = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("model.safetensors.index.json", "chat_template.jinja"),
)
ENCODER = (
    *("modules.json", "1_Pooling/config.json", "2_Dense/config.json", "config_sentence_transformers.json"),
    *("sentence_bert_config.json",),
)
GGUF = ("llama", "gemma2", "gemma3", "granite", "smollm3")
KINDS = (
    *("safetensors", *LLAMA, *ENCODER, *(f"{a}.gguf" for a in GGUF), "encoder:config.json", "encoder:tokenizer.json"),
    *("encoder:tokenizer_config.json", "dense", "templates"),
)
BATCH = 500
HANG = 20  # seconds after which a process is ended
MEMORY = 6_000_000_000


def outcomes(kind: str, folder: Path, count: int, seed: int) -> Iterator[tuple[hostile.Outcome, str]]:
    """The outcomes of ``count`` mutants, each with a description."""
    if kind == "templates":
        for source in hostile_templates.sources(count, seed):
            yield hostile.outcome(lambda source=source: hostile_templates.render(source)), source
        return
    if kind == "safetensors" or kind == "dense":
        whole = hostile.write_encoder(folder / "model")
        name = "model.safetensors" if kind == "safetensors" else "2_Dense/model.safetensors"
        copies = hostile.header_mutants((whole / name).read_bytes(), count, seed)
        found = hostile.replaced(whole, name, copies, hostile.open_embedder)
    elif kind.endswith(".gguf"):
        file = hostile.write_gguf(folder, kind.removesuffix(".gguf"))
        found = hostile.replaced(file, "", hostile.mutants(file.read_bytes(), count, seed), hostile.open_llm)
    elif kind in ENCODER or kind.startswith("encoder:"):
        name, classifies = kind.removeprefix("encoder:"), kind.startswith("encoder:")
        whole = hostile.write_encoder(folder / "model", labels=int(classifies))
        opens = hostile.open_classifier if classifies else hostile.open_embedder
        found = hostile.replaced(whole, name, hostile.mutants((whole / name).read_bytes(), count, seed), opens)
    else:
        whole = hostile.write_llama(folder / "model")
        data = hostile.TEMPLATE.encode() if kind.endswith(".jinja") else (whole / kind).read_bytes()
        found = hostile.replaced(whole, kind, hostile.mutants(data, count, seed), hostile.open_llm)
    for number, outcome in enumerate(found):
        yield outcome, f"mutant {number} of seed {seed}"


def batch(kind: str, count: int, seed: int, answers: multiprocessing.connection.Connection) -> None:
    """Run a batch, and send each outcome that is wrong, or None."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Rust reports its panics there
    with tempfile.TemporaryDirectory() as folder, hostile.without_device():
        for done, (outcome, which) in enumerate(outcomes(kind, Path(folder), count, seed)):
            signal.alarm(HANG)
            complaint = hostile_templates.complaint(outcome) if kind == "templates" else outcome.complaint
            answers.send((done, f"{complaint}: {which}" if complaint else ""))


def run(kind: str, count: int, seed: int) -> list[str]:
    """All complaints of ``count`` mutants."""
    context, found = multiprocessing.get_context("spawn"), []
    for first in range(0, count, BATCH):
        ours, theirs = context.Pipe(duplex=False)
        here = min(BATCH, count - first)
        process = context.Process(target=batch, args=(kind, here, seed + first, theirs))
        process.start()
        theirs.close()
        last = -1
        try:
            while True:
                last, complaint = ours.recv()
                if complaint:
                    found.append(complaint)
        except EOFError:
            process.join()
        if last < here - 1 and process.exitcode:
            how = "hangs" if process.exitcode == -signal.SIGALRM else f"ends the process ({process.exitcode})"
            found.append(f"{how}: mutant {last + 1} of seed {seed + first}")
    return found


def main() -> int:
    """Run the kinds that were asked for, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=KINDS, help=f"of {', '.join(KINDS)}")
    parser.add_argument("--count", type=int, help="mutants of each kind")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    unknown = [kind for kind in given.kinds if kind not in KINDS]
    if unknown:
        parser.error(f"unknown kinds: {', '.join(unknown)}")
    wrong = 0
    for kind in given.kinds:
        count = given.count or (50_000 if kind == "safetensors" else 20_000)
        found = run(kind, count, given.seed)
        wrong += len(found)
        print(f"{kind}: {count:,} mutants, {len(found)} wrong", flush=True)
        for complaint in islice(dict.fromkeys(found), 20):
            print(f"  {complaint:.300}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
