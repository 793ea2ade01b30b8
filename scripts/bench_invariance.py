"""Does a text depend on its company? Makes docs/invariance.json and docs/invariance.md.

    scripts/peers/setup .peers server                      once: llama-server, for the CPU and for Vulkan
    python scripts/bench_invariance.py docs --gguf FILE    measures

Every prompt of scripts/invariance_prompts.jsonl is answered alone, then in company: again, with others at once, with its
beginning in the cache, with speculation, after preemption. An answer diverges where its token ids differ from those of
its lone run by the same engine with the same weights. Most answers are greedy, the others are drawn with a seed.
Engines answer the same token ids with the same number of requests under way.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import numpy as np  # noqa: E402
from turns import about_machine, machine  # noqa: E402

from llamagpu import LLM, gpu  # noqa: E402
from llamagpu.version import __version__  # noqa: E402

SEEDED_EVERY = 4  # one prompt of so many is drawn with a seed, the others are greedy
DRAWN = {"temperature": 0.8, "top_k": 40}
MOST_AT_ONCE = 32
PROMPT, DRAFT, PREEMPTION = "speculation from the prompt", "speculation with a draft model", "preemption"


@dataclass(frozen=True)
class Request:
    """A prompt's number, kind and token ids; and a seed, or None for greedy decoding."""

    number: int
    kind: str
    ids: tuple[int, ...]
    seed: int | None


@dataclass(frozen=True)
class Company:
    """What differs from the lone run.

    Attributes:
        at_once: requests under way.
        cached: whether the first two thirds of a prompt were asked for just before, and may be reused.
        mode: how the engine is started: with speculation, or with so little memory that requests preempt each other.
    """

    name: str
    at_once: int = 1
    cached: bool = False
    mode: str = ""


COMPANIES = (
    Company("alone, once more"),
    Company("2 at once", 2),
    Company("8 at once", 8),
    Company("32 at once", 32),
    Company("beginning from the cache", cached=True),
    Company("beginning from the cache, 32 at once", 32, cached=True),
    Company(PROMPT, mode=PROMPT),
    Company(f"{PROMPT}, 32 at once", 32, mode=PROMPT),
    Company(DRAFT, mode=DRAFT),
    Company(f"{PREEMPTION}, 32 at once", 32, mode=PREEMPTION),
)


class Opened(Protocol):
    """An engine with the model loaded."""

    def ask(self, ids: Sequence[int], tokens: int, seed: int | None, cached: bool) -> list[int]:
        """Up to ``tokens`` new token ids, with or without what the cache holds."""

    def gap(self, ids: Sequence[int]) -> float:
        """How far the likeliest next token's logit is above the second's."""

    def note(self) -> str:
        """What the page says of the company."""


class Engine(Protocol):
    """An engine that can be opened in several modes."""

    name: str
    version: str
    modes: frozenset[str]

    def open(self, mode: str) -> AbstractContextManager[Opened]:
        """Load the model."""


# --- engines ---------------------------------------------------------------------------------


class OpenedLLM:
    """llamagpu, through its public interface."""

    def __init__(self, llm: LLM, mode: str):
        self._llm, self._mode = llm, mode

    def ask(self, ids: Sequence[int], tokens: int, seed: int | None, cached: bool) -> list[int]:
        """See ``Opened``."""
        settings: dict[str, Any] = {"temperature": 0.0} if seed is None else DRAWN | {"seed": seed}
        with self._llm.stream(list(ids), reuse=cached, max_tokens=tokens, **settings) as stream:
            return stream.result.token_ids

    def gap(self, ids: Sequence[int]) -> float:
        """See ``Opened``."""
        second, first = np.sort(self._llm.logits(ids, first=len(ids) - 1)[0])[-2:]
        return float(first - second)

    def note(self) -> str:
        """See ``Opened``."""
        if self._mode != PREEMPTION:
            return ""
        scheduler = self._llm._session.engine.scheduler  # type: ignore[union-attr]
        return f"{scheduler.preemptions} preemptions in a cache of {self._llm.sizes.pool} tokens"


class Ours:
    """llamagpu, in the modes that its ``LLM`` takes arguments for."""

    name = "llamagpu"

    def __init__(self, model: Path, longest: int):
        self._model = model
        options: dict[str, dict[str, Any]] = {"": {}, PREEMPTION: {"context": longest}}
        if "speculate" in inspect.signature(LLM).parameters:
            options |= {PROMPT: {"speculate": "prompt"}, DRAFT: {"speculate": str(model)}}
        self._options, self.modes = options, frozenset(options)
        self.version = ""

    @contextmanager
    def open(self, mode: str) -> Iterator[OpenedLLM]:
        """See ``Engine``."""
        options = dict(self._options[mode])
        if mode == PREEMPTION:
            with LLM(self._model, **options) as llm:  # its cache holds 8 contexts
                options["max_memory"] = llm.sizes.total - llm.sizes.kv * 5 // 8
        with LLM(self._model, **options) as llm:
            adapter = llm.device.adapter
            self.version = f"llamagpu {__version__}, {gpu.version()}, on {adapter}, {adapter.driver}"
            yield OpenedLLM(llm, mode)


class OpenedServer:
    """A llama-server that listens."""

    def __init__(self, address: str):
        self._address = address

    def ask(self, ids: Sequence[int], tokens: int, seed: int | None, cached: bool) -> list[int]:
        """See ``Opened``."""
        settings = {"temperature": 0.0} if seed is None else DRAWN | {"seed": seed}
        return list(self._completion(ids, tokens, settings | {"cache_prompt": cached})["tokens"])

    def gap(self, ids: Sequence[int]) -> float:
        """See ``Opened``."""
        answer = self._completion(ids, 1, {"temperature": 0.0, "n_probs": 2, "cache_prompt": False})
        first, second = answer["completion_probabilities"][0]["top_logprobs"]
        return float(first["logprob"] - second["logprob"])

    def note(self) -> str:
        """See ``Opened``."""
        return ""

    def answers(self) -> bool:
        """Whether it has loaded its model."""
        try:
            with urllib.request.urlopen(f"{self._address}/health"):
                return True
        except urllib.error.URLError:
            return False

    def _completion(self, ids: Sequence[int], tokens: int, settings: dict[str, Any]) -> dict[str, Any]:
        body = {"prompt": list(ids), "n_predict": tokens, "return_tokens": True} | settings
        request = urllib.request.Request(f"{self._address}/completion", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as response:
            return dict(json.load(response))


class LlamaServer:
    """llama.cpp's server on one device, with a slot for each of 32 requests, in every mode the same."""

    modes = frozenset(("", PROMPT, DRAFT))

    def __init__(self, binary: Path, model: Path, vulkan: bool, threads: int):
        self.name = f"llama.cpp, {'Vulkan' if vulkan else 'CPU'}"
        device = ["-ngl", "99"] if vulkan else ["--device", "none", "-ngl", "0"]
        slots = ["--parallel", str(MOST_AT_ONCE), "--ctx-size", str(512 * MOST_AT_ONCE)]
        self._command = [str(binary), "-m", str(model), "--threads", str(threads), *device, *slots]
        simple = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "2", "--spec-ngram-simple-size-m", "4"]
        draft = ["--spec-type", "draft-simple", "--spec-draft-model", str(model), "--spec-draft-n-max", "4"]
        self._options = {"": [], PROMPT: simple, DRAFT: draft}
        about = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=True)
        found = next(line for line in (about.stdout + about.stderr).splitlines() if line.startswith("version"))
        where = "CPU"
        if vulkan:
            devices = subprocess.run([str(binary), "--list-devices"], capture_output=True, text=True, env=_visible())
            where = next(line for line in devices.stdout.splitlines() if "Vulkan0" in line).split(":", 1)[1].strip()
        self.version = f"llama.cpp {found.split(':', 1)[1].strip()}, on {where}, {threads} threads"

    @contextmanager
    def open(self, mode: str) -> Iterator[OpenedServer]:
        """See ``Engine``."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command, server = [*self._command, *self._options[mode], "--port", str(port)], None
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_visible())
            server = OpenedServer(f"http://127.0.0.1:{port}")
            try:
                while not server.answers():
                    if process.poll() is not None:
                        log.seek(0)
                        raise RuntimeError(log.read().decode(errors="replace").strip().splitlines()[-1][:200])
                    time.sleep(0.2)
                yield server
            finally:
                process.kill()
                process.wait()


def _visible() -> dict[str, str]:
    """llama.cpp takes software devices for Vulkan only if they are named."""
    return os.environ | {"GGML_VK_VISIBLE_DEVICES": "0"}


# --- measuring -------------------------------------------------------------------------------


def read_requests(model: Path, most: int) -> list[Request]:
    """The prompts' tokens, in an order of their file that mixes kinds. Conversations go through the chat template."""
    lines = (HERE / "invariance_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    out = []
    with LLM(model, context=512) as llm:
        for number, line in enumerate(lines[:most]):
            given = json.loads(line)
            messages = [{"role": "user", "content": given["text"]}]
            ids = llm.apply_chat_template(messages) if given["kind"] == "chat" else llm.prompt_ids(given["text"])
            seed = number if number % SEEDED_EVERY == SEEDED_EVERY - 1 else None
            out.append(Request(number, given["kind"], tuple(ids), seed))
    return out


def answers(opened: Opened, requests: Sequence[Request], tokens: int, company: Company) -> dict[int, list[int]]:
    """The new tokens of every request, by its number. Each of ``at_once`` threads asks for one request after another."""

    def answer(request: Request) -> list[int]:
        if company.cached:
            opened.ask(request.ids[: max(1, 2 * len(request.ids) // 3)], 1, None, True)
        return opened.ask(request.ids, tokens, request.seed, company.cached)

    order = random.Random(company.name).sample(requests, len(requests))
    with ThreadPoolExecutor(company.at_once) as threads:
        return {r.number: found for r, found in zip(order, threads.map(answer, order), strict=True)}


def divergence(lone: list[int], other: list[int]) -> int | None:
    """The first position where two answers differ, or None."""
    pairs = itertools.zip_longest(lone, other)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), None)


def compare(
    plain: Opened, requests: Sequence[Request], lone: dict[int, list[int]], found: dict[int, list[int]]
) -> list[dict[str, Any]]:
    """The requests whose answers diverge: where, and how close the two likeliest tokens of the lone run are there."""
    out = []
    for r in requests:
        position = divergence(lone[r.number], found[r.number])
        if position is not None:
            row = {"prompt": r.number, "kind": r.kind, "tokens": len(r.ids), "seed": r.seed, "position": position}
            out.append(row | {"gap": round(plain.gap([*r.ids, *lone[r.number][:position]]), 6)})
    return out


def measure(engine: Engine, requests: Sequence[Request], tokens: int) -> dict[str, Any]:
    """All companies of an engine."""
    seeded = sum(r.seed is not None for r in requests)
    out: dict[str, Any] = {"greedy": len(requests) - seeded, "seeded": seeded, "companies": []}
    with engine.open("") as plain:
        start = time.perf_counter()
        lone = answers(plain, requests, tokens, Company("alone"))
        print(f"{engine.name}: alone, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        for mode, group in itertools.groupby(COMPANIES, lambda c: c.mode):
            if mode not in engine.modes:
                continue
            try:
                with engine.open(mode) if mode else _same(plain) as opened:
                    for company in group:
                        start = time.perf_counter()
                        found = compare(plain, requests, lone, answers(opened, requests, tokens, company))
                        out["companies"].append(asdict(company) | {"diverged": found, "note": opened.note()})
                        took = time.perf_counter() - start
                        print(f"{engine.name}: {company.name}, {len(found)}, {took:.0f} s", file=sys.stderr, flush=True)
            except (OSError, RuntimeError) as e:  # an engine that ends, or refuses a mode
                out["companies"].append({"name": mode or "all", "failure": str(e)})
    return {"engine": engine.name, "version": engine.version} | out


@contextmanager
def _same(opened: Opened) -> Iterator[Opened]:
    """An engine that stays open."""
    yield opened


# --- the page --------------------------------------------------------------------------------


def page(found: dict[str, Any]) -> str:
    """The text of docs/invariance.md."""
    rows, lengths = found["rows"], found["lengths"]
    lines = [
        "# Text in company",
        "",
        f"{found['model']}: every prompt of `scripts/invariance_prompts.jsonl` ({lengths[0]} to {lengths[2]} tokens, "
        f"median {lengths[1]}) is continued by {found['tokens']} tokens, alone and in company. An answer diverges if a "
        "token differs from its lone run by the same engine with the same weights. Three prompts of four are greedy; "
        f"the others are drawn at temperature {DRAWN['temperature']} among the {DRAWN['top_k']} likeliest tokens, each "
        "with a seed of its own. At once means that so many clients ask for one prompt after another. Where a "
        "beginning comes from the cache, its first two thirds were asked for just before. Speculation drafts up to 4 "
        "tokens, from the prompt or with the same model as its own draft. Preemption means a cache that holds "
        "two of the longest requests.",
        "",
        about_machine(found["machine"]),
        "",
        "| company | " + " | ".join(f"{r['engine']}, greedy | seeded" for r in rows) + " |",
        "| --- |" + " ---: | ---: |" * len(rows),
    ]
    for company in COMPANIES:
        cells = [cell for r in rows for cell in _cells(r, company.name)]
        if any(cells):
            lines.append(f"| {company.name} | " + " | ".join(cells) + " |")
    lines += ["", *_where(rows), "Versions:", "", *(f"- {r['engine']}: {r['version']}" for r in rows)]
    lines += ["", "Measured by `python scripts/bench_invariance.py docs --gguf FILE`; `scripts/peers/setup .peers server`"]
    return "\n".join([*lines, "unpacks llama-server."]) + "\n"


def _cells(row: dict[str, Any], name: str) -> tuple[str, str]:
    """How many greedy and seeded answers diverge."""
    company = next((c for c in row["companies"] if c["name"] == name), None)
    if company is None:
        return "", ""
    if "failure" in company:
        return "failed", "failed"
    seeded = sum(d["seed"] is not None for d in company["diverged"])
    return f"{len(company['diverged']) - seeded} of {row['greedy']}", f"{seeded} of {row['seeded']}"


def _where(rows: list[dict[str, Any]]) -> list[str]:
    """Where answers diverge, and notes."""
    lines = [
        "Where they diverge: the first differing token counts from 0; the gap is between the two largest logits of the "
        "lone run there, in greedy answers.",
        "",
        "| engine | company | diverged | first differing token, earliest and median | gap, smallest, median and largest |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    notes = []
    for row in rows:
        for c in row["companies"]:
            if "failure" in c or c["note"]:
                notes.append(f"{row['engine']}, {c['name']}: {c.get('failure') or c['note']}.")
            if not c.get("diverged"):
                continue
            positions = [d["position"] for d in c["diverged"]]
            gaps = [d["gap"] for d in c["diverged"] if d["seed"] is None]
            spread = f"{min(gaps):.4f}, {statistics.median(gaps):.4f}, {max(gaps):.4f}" if gaps else ""
            where = f"{min(positions)}, {statistics.median(positions):g}"
            lines.append(f"| {row['engine']} | {c['name']} | {len(positions)} | {where} | {spread} |")
    return [*(lines if len(lines) > 4 else []), "", *(line for note in notes for line in (note, ""))]


def main() -> None:
    """Measure, and write the page and its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a directory for invariance.json and invariance.md")
    parser.add_argument("--gguf", type=Path, required=True, help="the model, as all engines read it")
    parser.add_argument("--llama-server", type=Path, default=Path(".peers/llama-server/llama-server"))
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--vulkan-prompts", type=int, default=48, help="of llama.cpp on Vulkan, which is slow")
    parser.add_argument("--tokens", type=int, default=16, help="tokens to generate")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of llama.cpp")
    parser.add_argument("--only", default="", help="engines to measure, separated by semicolons; others are kept")
    o = parser.parse_args()
    model, server = o.gguf.resolve(), o.llama_server.resolve()
    requests = read_requests(model, o.prompts)
    lengths = sorted(len(r.ids) for r in requests)
    engines: list[Engine] = [Ours(model, lengths[-1] + o.tokens)]
    if server.exists():
        engines += [LlamaServer(server, model, vulkan, o.threads) for vulkan in (False, True)]
    only, path = o.only.split(";") if o.only else [], o.out / "invariance.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["rows"] if only and path.exists() else []
    rows = []
    for engine in engines:
        if only and engine.name not in only:
            rows += [r for r in kept if r["engine"] == engine.name]
            continue
        rows.append(measure(engine, requests[: o.vulkan_prompts] if "Vulkan" in engine.name else requests, o.tokens))
    about = {"machine": machine(), "model": model.stem, "tokens": o.tokens}
    result = about | {"lengths": [lengths[0], statistics.median(lengths), lengths[-1]], "rows": rows}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (o.out / "invariance.md").write_text(page(result), encoding="utf-8")
    print(page(result))


if __name__ == "__main__":
    main()
