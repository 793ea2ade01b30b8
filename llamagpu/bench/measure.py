"""Prompt and generation speed of a model, with the adapter's yardsticks beside them."""

from __future__ import annotations

import queue
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from llamagpu import gpu
from llamagpu.bench.parts import (
    Parts,
    attention_macs,
    chain,
    kv_read_bytes,
    measure_parts,
    weight_macs,
    weight_read_bytes,
)
from llamagpu.engine.engine import Engine
from llamagpu.engine.request import Conversation, Request
from llamagpu.errors import UsageError
from llamagpu.gpu.census import Census, census
from llamagpu.gpu.timing import Stopwatch
from llamagpu.model import Model, check_dtypes, load_model, prepare_model

COUNTED_TOKENS = 16


class _Clock(queue.SimpleQueue[Any]):
    """Events with the time at which the engine put each."""

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put((time.perf_counter(), item))


@dataclass
class Subject:
    """A model to be measured, loaded; close it, or use it as a context manager."""

    name: str
    dtype: str
    parameters: int
    weight_bytes: int
    device: gpu.Device
    model: Model
    engine: Engine

    def __enter__(self) -> Subject:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.device.close()

    def generate(
        self, prompts: Sequence[list[int]], tokens: int, keep: Sequence[Conversation | None] | None = None
    ) -> list[list[float]]:
        """Generate together; the times at which each sequence's tokens arrived, the start of all in front. What the
        conversations ``keep`` of earlier calls is not computed again."""
        kept = keep or [None] * len(prompts)
        requests = [
            Request(prompt=p, limit=tokens, events=_Clock(), conversation=c) for p, c in zip(prompts, kept, strict=True)
        ]
        start = time.perf_counter()
        for request in requests:
            self.engine.submit(request)
        out = []
        for request in requests:
            times = [start]
            while True:
                at, event = request.events.get()
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, str):
                    break
                times.append(at)
            out.append(times)
        return out

    def prompt(self, tokens: int, seed: int = 0) -> list[int]:
        """Random token ids."""
        return [int(i) for i in np.random.default_rng(seed).integers(0, self.model.config.vocab_size, tokens)]


def open_subject(
    model: str | None,
    shape: str | None,
    *,
    device: str | gpu.Device = "auto",
    dtype: str = "auto",
    kv_dtype: str = "auto",
    context: int | None = None,
    at_once: int = 0,
) -> Subject:
    """Load a checkpoint, or a named shape with random weights; the cache is to hold ``at_once`` tokens at least.

    Raises:
        UsageError: both, or a shape that is not known.
    """
    check_dtypes(dtype, kv_dtype)
    prepared = prepare_model(model, shape, dtype)
    opened = gpu.open(device)
    try:
        loaded = load_model(prepared, opened, context, kv_dtype, at_once=at_once)
    except BaseException:
        opened.close()
        raise
    layout = prepared.layout
    formats = {str(m.format) for m in layout.matrices.values()}
    name = Path(prepared.directory).name
    return Subject(
        name, "+".join(sorted(formats)), layout.parameters, layout.nbytes, opened, loaded, Engine(opened, loaded)
    )


@dataclass(frozen=True)
class Run:
    """One test of a subject. ``n_gen`` 0 is a prompt of ``n_prompt`` tokens, otherwise ``n_gen`` tokens are generated
    behind ``n_depth`` others, by ``n_batch`` sequences at once.

    Attributes:
        samples_ns: nanoseconds of each repetition.
        samples_ts: tokens a second of each, of all sequences together.
        macs: multiply-adds a token.
        read_bytes: bytes of weights and cache read for each step.
        chain_ts: tokens a second of the model's products alone, in the same run.
        parts: of a single sequence's step.
    """

    n_prompt: int
    n_gen: int
    n_depth: int
    n_batch: int
    samples_ns: list[int]
    samples_ts: list[float]
    macs: float
    read_bytes: float
    chain_ts: float
    parts: Parts | None
    counted: Census | None

    @property
    def avg_ts(self) -> float:
        return statistics.fmean(self.samples_ts)

    @property
    def stddev_ts(self) -> float:
        return statistics.stdev(self.samples_ts) if len(self.samples_ts) > 1 else 0.0

    @property
    def test(self) -> str:
        """Its name, as llama-bench has it."""
        return test_name(self.n_prompt, self.n_gen, self.n_depth, self.n_batch)


def test_name(n_prompt: int, n_gen: int, n_depth: int, n_batch: int) -> str:
    """A test's name, as llama-bench has it."""
    name = f"tg{n_gen}" if n_gen else f"pp{n_prompt}"
    name += f" @ d{n_depth}" if n_depth else ""
    return name + (f" x{n_batch}" if n_batch > 1 else "")


class _Chain:
    """The model's bare products, timed in turns with the tests."""

    def __init__(self, subject: Subject, rows: int, prompt: bool):
        self._device, self._rows = subject.device, rows
        self._seconds: list[float] = []
        self._watch = Stopwatch(self._device)
        with self._device.ledger.tracking() as self._made:
            self._plan = chain(subject.model, rows, prompt)
        self.take()
        self._seconds.clear()  # the first run compiled

    def take(self) -> None:
        """Time one run."""
        self._seconds.append(self._watch.seconds(self._plan))

    def end(self) -> float:
        """Rows a second, by the median; frees what it holds."""
        self._plan.free()
        self._watch.free()
        for buffer in self._made:
            self._device.free(buffer)
        return self._rows / statistics.median(self._seconds)


def check_fits(subject: Subject, tokens: int, batch: int) -> None:
    """Raises UsageError where a test needs more than the context, or more than the cache holds at once."""
    model = subject.model
    if tokens > model.context:
        raise UsageError(
            f"A test of {tokens} tokens does not fit the context of {model.context}.",
            "Depth, prompt and new tokens count together.",
            "Give --context.",
        )
    if batch * tokens > model.sizes.pool or batch > 32:
        raise UsageError(
            f"{batch} sequences of {tokens} tokens do not run at once.",
            f"The cache holds {model.sizes.pool} tokens, and at most 32 sequences.",
            "Use a smaller batch, depth or number of tokens.",
        )


def run_prompt(subject: Subject, tokens: int, repeat: int) -> Run:
    """Time to the first token of a prompt."""
    check_fits(subject, tokens, 1)
    subject.generate([subject.prompt(tokens)], 1)
    samples, bare = [], _Chain(subject, tokens, prompt=True)
    for seed in range(repeat):
        (times,) = subject.generate([subject.prompt(tokens, seed)], 1)
        samples.append(times[1] - times[0])
        bare.take()
    c = subject.model.config
    macs = weight_macs(c) - c.vocab_size * c.hidden_size + attention_macs(c, (tokens + 1) // 2)
    reads = weight_read_bytes(subject.model.weights)
    return _run(samples, tokens, (tokens, 0, 0, 1), macs, reads, bare.end(), None, None)


def run_generation(subject: Subject, tokens: int, depth: int, batch: int, repeat: int) -> Run:
    """Tokens a second while all sequences of a batch generate."""
    before = max(depth, 1)
    check_fits(subject, before + tokens + 1, batch)
    prompts = [subject.prompt(before, seed) for seed in range(batch)]
    extra = batch - 1  # the first to be ready go ahead while the others' prompts run
    keep = [Conversation() for _ in prompts]  # the depth is computed once
    subject.generate(prompts, 2, keep)
    samples, made, bare = [], tokens, _Chain(subject, batch, prompt=False)
    for _ in range(repeat):
        every = subject.generate(prompts, min(tokens + 1 + extra, subject.model.context - before), keep)
        begin, end = max(t[1] for t in every), min(t[-1] for t in every)
        made = sum(begin < at <= end for t in every for at in t[1:])
        samples.append((end - begin) * tokens * batch / made)
        bare.take()
    counted = _count(subject, prompts[0], keep[0])
    subject.engine.forget()
    parts = measure_parts(subject.model, before + tokens // 2) if batch == 1 else None
    c, model = subject.model.config, subject.model
    mean = before + tokens / 2
    macs = weight_macs(c) + attention_macs(c, int(mean))
    reads = weight_read_bytes(model.weights) + batch * kv_read_bytes(c, int(mean), model.sizes.kv_dtype)
    return _run(samples, tokens * batch, (0, tokens, depth, batch), macs, reads, bare.end(), parts, counted)


def _run(
    samples: list[float],
    tokens: int,
    test: tuple[int, int, int, int],
    macs: float,
    reads: float,
    chain_ts: float,
    parts: Parts | None,
    counted: Census | None,
) -> Run:
    rates = [tokens / s for s in samples]
    return Run(*test, [int(s * 1e9) for s in samples], rates, macs, reads, chain_ts, parts, counted)


def _count(subject: Subject, prompt: list[int], keep: Conversation) -> Census:
    """Native calls of ``COUNTED_TOKENS`` decoded tokens, the prompt's left out."""
    found = []
    for tokens in (1, 1 + COUNTED_TOKENS):
        with census() as counts:
            subject.generate([prompt], tokens, [keep])
        found.append(counts)
    few, many = found
    many.calls.subtract(few.calls)
    many.bytes.subtract(few.bytes)
    return many
