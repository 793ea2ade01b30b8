#!/usr/bin/env python3
"""What batches, chunks, the cache and drafts gain, in ratios: makes docs/serving.json and docs/serving.md.

    python scripts/bench_serving.py docs --gguf SmolLM2-135M-Instruct.Q4_1.gguf

Each test has sides that are measured in turns, so that a drift of the machine or other work on it touches all sides
alike. Only ratios count: the page has those of the rounds (median, smallest, largest), and that of each side's fastest
round, which other work on the machine changes least. On a software adapter all work is that of this process, so that
the ratio of its CPU seconds is a further figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from invariance_engines import LlamaServer, Opened, OpenedLLM  # noqa: E402
from turns import about_machine, machine  # noqa: E402

from llamagpu import LLM, gpu  # noqa: E402
from llamagpu.version import __version__  # noqa: E402

PROMPTS = ["Once upon a time", "The little dog ran", "One day, a girl", "Tom had a red ball", "It was", "She saw a big"]
PROMPTS += ["My friend", "In the park"]
SAMPLED = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1}
LONG, CHAT, ANSWER, SECOND = 2000, 1000, 16, 24  # tokens of a prompt, a first turn, its answer, a second turn's message
ARTICLE = (
    "The Nile is a river in north-eastern Africa that flows north into the Mediterranean Sea. It is about 6,650 km "
    "long, and its basin covers parts of eleven countries. The White Nile begins in the Great Lakes region of central "
    "Africa, and the Blue Nile begins at Lake Tana in Ethiopia. The two rivers meet near Khartoum, the capital of "
    "Sudan. The northern part of the river flows almost entirely through the desert to Egypt, whose civilization has "
    "depended on the river since ancient times."
)
ASKED = "Summarize this text by repeating its most important sentences.\n\n"


@dataclass
class Test:
    """Sides that are measured in turns. The figure is the mean seconds of the sides ``above`` by those of ``below``.

    Attributes:
        sides: by name, what measures one: seconds, from the number of the round.
        goal: what the figure should be.
        whole: whether a side's call does nothing but what is measured, so that its CPU seconds count.
    """

    name: str
    model: str
    sides: dict[str, Callable[[int], float]]
    above: Sequence[str]
    below: str
    goal: str
    whole: bool = False
    rounds: list[dict[str, float]] = field(default_factory=list)
    cpu: list[dict[str, float]] = field(default_factory=list)

    def take(self) -> None:
        """Measure a round. Every other one begins with the last side."""
        number = len(self.rounds)
        order = list(self.sides) if number % 2 == 0 else list(reversed(self.sides))
        found, cpu = dict[str, float](), dict[str, float]()
        for side in order:
            begin = time.process_time()
            found[side] = self.sides[side](number)
            cpu[side] = time.process_time() - begin
        self.rounds.append({side: found[side] for side in self.sides})
        if self.whole:
            self.cpu.append({side: cpu[side] for side in self.sides})

    def record(self) -> dict[str, Any]:
        """The results."""
        about = {"name": self.name, "model": self.model, "goal": self.goal}
        return about | {"above": list(self.above), "below": self.below, "rounds": self.rounds, "cpu": self.cpu}


def ratios(test: dict[str, Any], rounds: Sequence[dict[str, float]]) -> list[float]:
    """The figure of each round of a recorded test."""
    return [statistics.mean(one[side] for side in test["above"]) / one[test["below"]] for one in rounds]


def fastest(rounds: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """The shortest time of each side, as a round."""
    return [{side: min(one[side] for one in rounds) for side in rounds[0]}] if rounds else []


def seconds(work: Callable[[], object]) -> float:
    """The time of a call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


# --- tests -----------------------------------------------------------------------------------


class WrongDrafts:
    """A drafter whose guesses are never right, because it knows the text."""

    def __init__(self, text: Sequence[int], vocabulary: int):
        self._text, self._vocabulary = text, vocabulary

    def guess(self, sequences: Sequence[tuple[Any, int]]) -> list[list[int]]:
        """See ``llamagpu.engine.drafts.Drafter``."""
        out = []
        for sequence, most in sequences:
            right = self._text[sequence.made : sequence.made + most]
            out.append([(token + 1) % self._vocabulary for token in right])
        return out

    def end(self, sequence: Any) -> None:
        """Nothing is kept."""

    free = end


class Tests:
    """The tests of one model, loaded without and with drafts."""

    def __init__(self, name: str, plain: LLM, drafting: LLM, tokens: int):
        self._name, self._plain, self._drafting, self._tokens = name, plain, drafting, tokens
        self._text = plain.generate(PROMPTS[0], max_tokens=256, ignore_eos=True).token_ids
        for kinds in ([{}] * 8, [SAMPLED] * 8):  # compiles what the tests run
            self._batch(kinds, tokens=2)
        self._wrong(32)

    def all(self) -> Iterator[Test]:
        """Those for which the model's context is long enough; the bundled one's is 512 tokens."""
        yield self._together()
        yield self._mixed()
        yield self._wrong_drafts()
        if self._plain.context > LONG:
            yield self._short_prompt()
            yield self._second_turn()
            yield self._lookup()

    def _batch(self, kinds: Sequence[dict[str, Any]], tokens: int = 0) -> float:
        options = {"max_tokens": tokens or self._tokens, "ignore_eos": True}
        items: list[Any] = [{"prompt": p, "seed": 1, **kind} for p, kind in zip(PROMPTS, kinds, strict=True)]
        return seconds(lambda: self._plain.generate(items, reuse="none", **options))

    def _together(self) -> Test:
        options = {"max_tokens": self._tokens, "ignore_eos": True}

        def apart(_: int) -> float:
            return seconds(lambda: [self._plain.generate(p, reuse="none", **options) for p in PROMPTS])

        sides = {"one after another": apart, "8 at once": lambda _: self._batch([{}] * 8)}
        name = "8 requests at once"
        return Test(name, self._name, sides, ["one after another"], "8 at once", "≥ 2.5 ×", whole=True)

    def _mixed(self) -> Test:
        kinds: dict[str, list[dict[str, Any]]] = {"8 greedy": [{}] * 8, "8 drawn": [SAMPLED] * 8}
        kinds["4 of each"] = [{}, SAMPLED] * 4
        sides = {name: lambda _, kind=kind: self._batch(kind) for name, kind in kinds.items()}
        name = "8 greedy and drawn requests, beside the mean of 8 of a kind"
        return Test(name, self._name, sides, ["8 greedy", "8 drawn"], "4 of each", "≥ 0.9 ×", whole=True)

    def _wrong_drafts(self) -> Test:
        sides = {"no draft": lambda _: self._lone(256), "wrong drafts": lambda _: self._wrong(256)}
        name = "256 tokens, all drafts wrong"
        return Test(name, self._name, sides, ["wrong drafts"], "no draft", "≤ 1.05 ×", whole=True)

    def _lone(self, tokens: int) -> float:
        return seconds(lambda: self._plain.generate(PROMPTS[0], max_tokens=tokens, ignore_eos=True, reuse="none"))

    def _wrong(self, tokens: int) -> float:
        engine, before = self._drafting._session.engine, self._drafting.counters
        own, engine._drafter = engine._drafter, WrongDrafts(self._text, self._plain.config.vocab_size)
        options = {"max_tokens": tokens, "ignore_eos": True, "reuse": "none"}
        try:
            took = seconds(lambda: self._drafting.generate(PROMPTS[0], **options))
        finally:
            engine._drafter = own
        assert self._drafting.counters.drafted > before.drafted
        assert self._drafting.counters.accepted == before.accepted
        return took

    def _ids(self, count: int, seed: int) -> list[int]:
        return [5 + (7919 * (seed + 1) + 31 * i * i) % 400 for i in range(count)]

    def _first(self, ids: list[int], reuse: Any) -> float:
        """Seconds to the first token."""
        return seconds(lambda: self._plain.generate(ids, max_tokens=1, reuse=reuse))

    def _short_prompt(self) -> Test:
        rows = self._plain.sizes.rows

        def beside(number: int) -> float:
            long, short = self._ids(LONG, number), self._ids(8, number + 50)
            with self._plain.stream(long, max_tokens=1, reuse="none") as stream:
                while stream.prompt_tokens[0] < rows:  # the second chunk has begun
                    time.sleep(0.001)
                took = self._first(short, "none")
                assert not stream.done
            return took

        def chunk(number: int) -> float:
            long = self._ids(LONG, number)
            with self._plain.stream(long, max_tokens=1, reuse="none") as stream:
                while stream.prompt_tokens[0] < rows:
                    time.sleep(0.001)
                begin = time.perf_counter()
                while stream.prompt_tokens[0] < 2 * rows:
                    time.sleep(0.001)
                return time.perf_counter() - begin

        name = f"first token of a short prompt, beside one of {LONG:,} tokens"
        sides = {f"a chunk of {rows} tokens": chunk, "the short prompt": beside}
        return Test(name, self._name, sides, ["the short prompt"], f"a chunk of {rows} tokens", "≤ 1.5 ×")

    def _second_turn(self) -> Test:
        turn = self._ids(CHAT, 7)
        answer = self._plain.generate(turn, max_tokens=ANSWER, ignore_eos=True).token_ids

        def side(reuse: str) -> Callable[[int], float]:
            return lambda number: self._first([*turn, *answer, *self._ids(SECOND, number + 9)], reuse)

        def cached(number: int) -> float:
            self._plain.generate(turn, max_tokens=ANSWER, ignore_eos=True)  # another test may have taken its pages
            return side("any")(number)

        sides = {"without the cache": side("none"), "with it": cached}
        name = f"first token of the second turn, after {CHAT + ANSWER:,} tokens"
        return Test(name, self._name, sides, ["without the cache"], "with it", "≥ 5 ×")

    def _lookup(self) -> Test:
        ids = self._plain.apply_chat_template([{"role": "user", "content": ASKED + ARTICLE}])
        options = {"max_tokens": 96, "temperature": 0.0}

        def side(llm: LLM) -> Callable[[int], float]:
            return lambda _: llm.generate(ids, **options).timings.decode_s

        sides = {"no draft": side(self._plain), "prompt look-up": side(self._drafting)}
        sides["prompt look-up"](0)  # compiles steps of many guesses
        return Test("a summary with prompt look-up", self._name, sides, ["no draft"], "prompt look-up", "≥ 1.5 ×")


def beside_llama(name: str, ours: LLM, server: Opened, tokens: int) -> Test:
    """8 clients at once, of this engine and of llama-server on the same adapter."""
    ids = [ours.prompt_ids(p) for p in PROMPTS]

    def side(opened: Opened) -> Callable[[int], float]:
        def run(_: int) -> float:
            with ThreadPoolExecutor(8) as threads:
                begin = time.perf_counter()
                made = sum(map(len, threads.map(lambda one: opened.ask(one, tokens, None, "none"), ids)))
                return (time.perf_counter() - begin) / made

        return run

    sides = {"llama-server, Vulkan": side(server), "llamagpu": side(OpenedLLM(ours, ""))}
    what = "8 streams beside llama-server, seconds a token"
    return Test(what, name, sides, ["llama-server, Vulkan"], "llamagpu", "")


# --- the page --------------------------------------------------------------------------------


def page(found: dict[str, Any]) -> str:
    """The text of docs/serving.md."""
    lines = [
        "# What batches, chunks, the cache and drafts gain",
        "",
        f"{about_machine(found['machine'])} {found['beside']}".strip(),
        "The sides of a test were measured in turns. A ratio is the median of the rounds', with the smallest and the",
        "largest. Beside it are the ratio of each side's fastest round, and that of CPU seconds in the fastest rounds.",
        "Seconds are medians.",
        "",
        "| test | model | goal | ratio | fastest | CPU | seconds |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for t in found["tests"]:
        every = ratios(t, t["rounds"])
        best = (" ".join(f"{r:.2f} ×" for r in ratios(t, fastest(t[kind]))) for kind in ("rounds", "cpu"))
        cells = [t["name"], t["model"], t["goal"]]
        cells += [f"{statistics.median(every):.2f} × ({min(every):.2f} to {max(every):.2f})", *best]
        cells += ["; ".join(f"{side} {statistics.median(r[side] for r in t['rounds']):.3g}" for side in t["rounds"][0])]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"{found['versions']}.",
        f"Measured by `python scripts/bench_serving.py docs --gguf FILE {found['options']}`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the page and its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a directory for serving.json and serving.md")
    parser.add_argument(
        "--gguf", type=Path, help="a chat model that llama-server reads too; none: the bundled one only"
    )
    parser.add_argument("--llama-server", type=Path, default=Path(".peers/llama-server/llama-server"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large-rounds", type=int, default=3, help="of the tests of FILE")
    o = parser.parse_args()
    load = psutil.getloadavg()[0]
    beside = f"The load was {load:.1f} when it began: other work ran beside it." if load > 1 else ""
    options = f"--rounds {o.rounds} --large-rounds {o.large_rounds}"
    found: dict[str, Any] = {"machine": machine(), "beside": beside, "options": options, "tests": []}
    with ExitStack() as stack:
        device = stack.enter_context(gpu.open())
        found["versions"] = f"llamagpu {__version__}, {gpu.version()}, on {device.adapter}"
        models: list[tuple[str, Path | None, int, int]] = [("bundled", None, 64, o.rounds)]
        if o.gguf is not None:
            models.append((o.gguf.stem, o.gguf, 16, o.large_rounds))
        for name, model, tokens, rounds in models:
            context = None if model is None else LONG + 300
            plain = stack.enter_context(LLM(model, device=device, context=context))
            drafting = stack.enter_context(LLM(model, device=device, context=context, speculate="prompt"))
            take(list(Tests(name, plain, drafting, tokens).all()), rounds, found, o.out)
        if o.gguf is not None and o.llama_server.exists():
            engine = LlamaServer(o.llama_server.resolve(), o.gguf.resolve(), vulkan=True, threads=1)
            found["versions"] += f"; {engine.version}"
            server = stack.enter_context(engine.open(""))
            take([beside_llama(name, plain, server, tokens)], o.large_rounds, found, o.out)
    print(page(found))


def take(tests: list[Test], rounds: int, found: dict[str, Any], out: Path) -> None:
    """Measure tests in turns, and write the page with what there is."""
    for _ in range(rounds):
        for test in tests:
            test.take()
            print(test.model, test.name, test.rounds[-1], file=sys.stderr, flush=True)
    found["tests"] += [test.record() for test in tests]
    (out / "serving.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "serving.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
