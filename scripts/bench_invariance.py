"""Does a text depend on its company? Makes docs/invariance.json and docs/invariance.md.

    scripts/peers/setup .peers server                      once: llama-server, for the CPU and for Vulkan
    python scripts/bench_invariance.py docs --gguf FILE    measures

Every prompt of scripts/invariance_prompts.jsonl is answered alone, then in company: again, with others at once, with
its beginning in the cache, with speculation, after preemption. An answer diverges where its token ids differ from those
of its lone run by the same engine with the same weights. Most answers are greedy, the others are drawn with a seed.
All engines get the same token ids.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from invariance_engines import DRAFT, DRAWN, MOST_AT_ONCE, PREEMPTION, PROMPT, Engine, LlamaServer, Opened, Ours  # noqa: E402
from turns import about_machine, machine  # noqa: E402

from llamagpu import LLM  # noqa: E402
from llamagpu.engine.request import Reuse  # noqa: E402

SEEDED_EVERY = 4  # one prompt of so many is drawn with a seed, the others are greedy
LONGER = 96  # tokens of an answer with ``Company.longer``
FEWER = 32  # prompts of companies that need lone runs of their own


@dataclass(frozen=True)
class Request:
    """A prompt's number, kind and token ids; and a seed, or None for greedy decoding."""

    number: int
    kind: str
    ids: tuple[int, ...]
    seed: int | None
    turn: int = 0  # tokens of an earlier prompt that the ids begin with, before its answer


@dataclass(frozen=True)
class Company:
    """What differs from the lone run.

    Attributes:
        at_once: requests under way.
        reuse: what may come from the cache: nothing; the prompt's first two thirds, which were asked for just before
            (``exact``); or an earlier prompt and its answer, which the prompt continues (``any``).
        mode: how the engine is started: with speculation, or with so little memory that requests preempt each other.
        longer: whether the first prompts get answers so long that they outgrow the memory that they began with.
    """

    name: str
    at_once: int = 1
    reuse: Reuse = "none"
    mode: str = ""
    longer: bool = False


COMPANIES = (
    Company("alone, once more"),
    Company("2 at once", 2),
    Company("8 at once", 8),
    Company("32 at once", 32),
    Company("beginning from the cache", reuse="exact"),
    Company("beginning from the cache, 32 at once", 32, reuse="exact"),
    Company("next turn, the last one from the cache", reuse="any"),
    Company(PROMPT, mode=PROMPT),
    Company(f"{PROMPT}, 32 at once", 32, mode=PROMPT),
    Company(DRAFT, mode=DRAFT),
    Company(f"{PREEMPTION}, 32 at once", 32, mode=PREEMPTION, longer=True),
)


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
    """The new tokens of every request, by its number. Each of ``at_once`` threads asks for one after another."""

    def answer(request: Request) -> list[int]:
        if company.reuse == "any":
            opened.ask(request.ids[: request.turn], tokens, request.seed, "any")
        elif company.reuse == "exact":
            opened.warm(request.ids[: max(1, 2 * len(request.ids) // 3)])
        return opened.ask(request.ids, tokens, request.seed, company.reuse)

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
    """All companies of an engine. A company whose mode the engine refuses, or that ends it, has a failure instead."""
    out: list[dict[str, Any]] = []
    with engine.open("") as plain:
        lone = _timed(engine, plain, requests, tokens, Company("alone"))
        for mode, group in itertools.groupby(COMPANIES, lambda c: c.mode):
            if mode not in engine.modes:
                continue
            try:
                with engine.open(mode) if mode else _same(plain) as opened:
                    for c in group:
                        asked, most, expected = requests, LONGER if c.longer else tokens, lone
                        if c.longer or c.reuse == "any":  # of fewer prompts, because these run alone once more
                            asked = [r if c.longer else _next_turn(r, lone) for r in requests[:FEWER]]
                            expected = _timed(engine, plain, asked, most, Company(f"alone, as {c.name}"))
                        found = _timed(engine, opened, asked, most, c)
                        seeded = sum(r.seed is not None for r in asked)
                        row = asdict(c) | {"greedy": len(asked) - seeded, "seeded": seeded, "note": opened.note()}
                        out.append(row | {"diverged": compare(plain, asked, expected, found)})
            except (OSError, RuntimeError) as e:
                out.append({"name": mode, "failure": str(e)})
    return {"engine": engine.name, "version": engine.version, "companies": out}


def _next_turn(request: Request, lone: dict[int, list[int]]) -> Request:
    """The prompt that a request and its answer make."""
    return replace(request, ids=(*request.ids, *lone[request.number]), turn=len(request.ids))


def _timed(
    engine: Engine, opened: Opened, requests: Sequence[Request], tokens: int, company: Company
) -> dict[int, list[int]]:
    """As ``answers``, and tells who watches."""
    start = time.perf_counter()
    found = answers(opened, requests, tokens, company)
    print(f"{engine.name}: {company.name}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return found


@contextmanager
def _same(opened: Opened) -> Iterator[Opened]:
    """An engine that stays open."""
    yield opened


# --- the page --------------------------------------------------------------------------------


def page(found: dict[str, Any]) -> str:
    """The text of docs/invariance.md."""
    rows, options = found["rows"], found["options"]
    lines = ["# Text in company", "", _method(found), "", about_machine(found["machine"]), ""]
    lines += ["| company | " + " | ".join(f"{r['engine']}, greedy | seeded" for r in rows) + " |"]
    lines += ["| --- |" + " ---: | ---: |" * len(rows)]
    for company in COMPANIES:
        cells = [cell for r in rows for cell in _cells(r, company.name)]
        if any(cells):
            lines.append(f"| {company.name} | " + " | ".join(cells) + " |")
    given = " ".join(f"--{name} {value}" for name, value in options.items())
    lines += ["", *_where(rows), *_notes(rows), "Versions:", "", *(f"- {r['engine']}: {r['version']}" for r in rows)]
    lines += ["", f"Measured by `python scripts/bench_invariance.py docs --gguf FILE {given}`;"]
    return "\n".join([*lines, "`scripts/peers/setup .peers server` unpacks llama-server."]) + "\n"


def _method(found: dict[str, Any]) -> str:
    """How it was measured."""
    options, (least, median, most) = found["options"], found["lengths"]
    return (
        f"{found['model']} continues the first {options['prompts']} prompts of `scripts/invariance_prompts.jsonl` "
        f"({least} to {most} tokens, median {median:g}) by up to {options['tokens']} tokens, alone and in company. On "
        "Vulkan llama.cpp gets fewer prompts, because it is slow here. An answer diverges if a token differs from its "
        "lone run by the same engine. Three prompts of four are greedy; the others are drawn at temperature "
        f"{DRAWN['temperature']} among the {DRAWN['top_k']} likeliest tokens, each with a seed of its own. At once "
        "means that so many clients ask for one prompt after another. Where a beginning comes from the cache, its "
        "first two thirds were asked for just before. The next turn continues a prompt and its answer, of the first "
        f"{FEWER} prompts. The draft model is the model itself; llama.cpp drafts up to 4 tokens. Preemption means a "
        f"cache that holds two of the longest requests; the first {FEWER} prompts get answers of {LONGER} tokens. "
        f"llama-server has {MOST_AT_ONCE} slots in all runs, also in the lone one. An engine without a figure has no "
        "such mode."
    )


def _cells(row: dict[str, Any], name: str) -> tuple[str, str]:
    """How many greedy and seeded answers diverge."""
    company = next((c for c in row["companies"] if c["name"] == name), None)
    if company is None:
        return "", ""
    if "failure" in company:
        return "failed", "failed"
    seeded = sum(d["seed"] is not None for d in company["diverged"])
    return f"{len(company['diverged']) - seeded} of {company['greedy']}", f"{seeded} of {company['seeded']}"


def _where(rows: list[dict[str, Any]]) -> list[str]:
    """Where answers diverge."""
    lines = []
    for row in rows:
        for c in row["companies"]:
            if not c.get("diverged"):
                continue
            positions = [d["position"] for d in c["diverged"]]
            gaps = [d["gap"] for d in c["diverged"] if d["seed"] is None]
            spread = f"{min(gaps):.4f}, {statistics.median(gaps):.4f}, {max(gaps):.4f}" if gaps else ""
            where = f"{min(positions)}, {statistics.median(positions):g}"
            lines.append(f"| {row['engine']} | {c['name']} | {len(positions)} | {where} | {spread} |")
    if not lines:
        return []
    return [
        "Where answers diverge, with the first differing token counted from 0, and the gap between the two largest "
        "logits of the lone run there (greedy answers; `invariance.json` has each):",
        "",
        "| engine | company | diverged | first differing token: earliest, median | gap: smallest, median, largest |",
        "| --- | --- | ---: | ---: | ---: |",
        *lines,
        "",
    ]


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    """What engines did, such as preemptions; and why a mode failed."""
    found = [(r["engine"], c["name"], c.get("failure") or c["note"]) for r in rows for c in r["companies"]]
    return [*(f"- {engine}, {name}: {what}" for engine, name, what in found if what), ""]


def main() -> None:
    """Measure, and write the page and its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a directory for invariance.json and invariance.md")
    parser.add_argument("--gguf", type=Path, required=True, help="the model, as all engines read it")
    parser.add_argument("--llama-server", type=Path, default=Path(".peers/llama-server/llama-server"))
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--vulkan-prompts", type=int, default=24, help="of llama.cpp on Vulkan, which is slow")
    parser.add_argument("--tokens", type=int, default=16, help="tokens to generate")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of llama.cpp")
    parser.add_argument("--only", default="", help="engines to measure, separated by semicolons; others are kept")
    o = parser.parse_args()
    model, server = o.gguf.resolve(), o.llama_server.resolve()
    requests = read_requests(model, o.prompts)
    lengths = sorted(len(r.ids) for r in requests)
    engines: list[Engine] = [Ours(model, lengths[-1] + LONGER)]
    if server.exists():
        engines += [LlamaServer(server, model, vulkan, o.threads) for vulkan in (False, True)]
    only, path = o.only.split(";") if o.only else [], o.out / "invariance.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["rows"] if only and path.exists() else []
    o.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for engine in engines:
        if only and engine.name not in only:
            rows += [r for r in kept if r["engine"] == engine.name]
            continue
        rows.append(measure(engine, requests[: o.vulkan_prompts] if "Vulkan" in engine.name else requests, o.tokens))
    options = {"prompts": len(requests), "vulkan-prompts": o.vulkan_prompts, "tokens": o.tokens, "threads": o.threads}
    about = {"machine": machine(), "model": model.stem, "options": options}
    result = about | {"lengths": [lengths[0], statistics.median(lengths), lengths[-1]], "rows": rows}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (o.out / "invariance.md").write_text(page(result), encoding="utf-8")
    print(page(result))


if __name__ == "__main__":
    main()
