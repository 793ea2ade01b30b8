"""Speed of a model's prompts and generation, compared with its bare matrix products."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from llamagpu.engine.request import Events, Request
from llamagpu.engine.request import Sequence as Running
from llamagpu.engine.session import Session
from llamagpu.errors import UsageError
from llamagpu.gpu.census import Census, census
from llamagpu.gpu.timing import Stopwatch
from llamagpu.model import Prepared, check_dtypes, prepare_model
from llamagpu.model.fit import Load

COUNTED_TOKENS = 16


class _Clock(Events):
    """A queue of events, each with the time at which the engine put it there."""

    def put(self, event: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put((time.perf_counter(), event))


class Subject(Session):
    """A model to be measured. Close it, or use it as a context manager."""

    def __init__(self, prepared: Prepared, device: str | gpu.Device = "auto", **options: Any):
        super().__init__(prepared, device, **options)
        layout = prepared.layout
        self.name = prepared.name
        self.dtype = "+".join(sorted({str(m.format) for m in layout.matrices.values()}))
        self.parameters, self.weight_bytes = layout.parameters, layout.nbytes

    def generate(self, prompts: Sequence[list[int]], tokens: int, reuse: bool = False) -> list[list[float]]:
        """Generate from all prompts together. Returns for each sequence the common start time and the times at which
        its tokens arrived.

        Args:
            reuse: take the cached beginnings of earlier prompts.
        """
        start = time.perf_counter()
        requests = [Request(tuple(p), tokens, reuse="any" if reuse else "none") for p in prompts]
        return [[start, *_times(s)] for s in [self.engine.submit(r, events=_Clock()) for r in requests]]

    def prompt(self, tokens: int, seed: int = 0) -> list[int]:
        """Random token ids."""
        return [int(i) for i in np.random.default_rng(seed).integers(0, self.model.config.vocab_size, tokens)]


def _times(running: Running) -> Iterator[float]:
    """The times of a sequence's tokens."""
    while True:
        at, event = running.events.get()
        if isinstance(event, Exception):
            raise event
        if isinstance(event, str):
            return
        yield at


def open_subject(
    model: str | None,
    shape: str | None,
    *,
    revision: str | None = None,
    device: str | gpu.Device = "auto",
    dtype: str = "auto",
    kv_dtype: str = "auto",
    context: int | None = None,
    at_once: int = 0,
    max_memory: int | None = None,
) -> Subject:
    """Load a checkpoint, or a named shape with random weights. The cache holds at least ``at_once`` tokens.

    Raises:
        UsageError: both are given, or the shape is unknown.
    """
    dtype, kv_dtype = check_dtypes(dtype, kv_dtype)
    load = Load(device, max_memory, dtype, kv_dtype, context, at_once=at_once)
    prepared = prepare_model(model, shape, dtype, revision, load)
    return Subject(prepared, device, context=context, kv_dtype=kv_dtype, at_once=at_once, max_memory=max_memory)


@dataclass(frozen=True)
class Run:
    """One test of a subject. If ``n_gen`` is 0, it is a prompt of ``n_prompt`` tokens; otherwise ``n_batch`` sequences
    generate ``n_gen`` tokens each, after ``n_depth`` tokens.

    Attributes:
        samples_ns: nanoseconds of each repetition.
        samples_ts: tokens a second of each repetition, all sequences together.
        macs: multiply-adds per token.
        read_bytes: bytes of weights and cache read for each step.
        chain_ts: tokens a second of the model's bare products, in the same run.
        parts: times of the parts of a single sequence's step.
        counted: native calls of ``COUNTED_TOKENS`` tokens.
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
        """The test's name in llama-bench."""
        return test_name(self.n_prompt, self.n_gen, self.n_depth, self.n_batch)


def test_name(n_prompt: int, n_gen: int, n_depth: int, n_batch: int) -> str:
    """A test's name in llama-bench."""
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
        """Rows a second, by the median. Frees the plan and its buffers."""
        self._plan.free()
        self._watch.free()
        for buffer in self._made:
            self._device.free(buffer)
        return self._rows / statistics.median(self._seconds)


def check_fits(subject: Subject, tokens: int, batch: int) -> None:
    """Raises UsageError if a test needs more than the context, or more than the cache holds at once."""
    model = subject.model
    if tokens > model.context:
        raise UsageError(
            f"A test of {tokens} tokens does not fit the context of {model.context}.",
            "Depth, prompt and new tokens count together.",
            "Give --context.",
        )
    if batch * tokens > model.sizes.pool or batch > 32:
        raise UsageError(
            f"{batch} sequences of {tokens} tokens cannot run in one batch.",
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
    extra = batch - 1  # sequences that are ready generate while the prompts of others run
    subject.generate(prompts, 2)  # puts the prompts into the cache, for later runs
    samples, made, bare = [], tokens, _Chain(subject, batch, prompt=False)
    for _ in range(repeat):
        every = subject.generate(prompts, min(tokens + 1 + extra, subject.model.context - before), reuse=True)
        begin, end = max(t[1] for t in every), min(t[-1] for t in every)
        made = sum(begin < at <= end for t in every for at in t[1:])
        samples.append((end - begin) * tokens * batch / made)
        bare.take()
    counted = _count(subject, prompts[0])
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


def _count(subject: Subject, prompt: list[int]) -> Census:
    """Native calls of ``COUNTED_TOKENS`` decoded tokens, without those of the prompt."""
    found = []
    for tokens in (1, 1 + COUNTED_TOKENS):
        with census() as counts:
            subject.generate([prompt], tokens, reuse=True)
        found.append(counts)
    few, many = found
    many.calls.subtract(few.calls)
    many.bytes.subtract(few.bytes)
    return many
