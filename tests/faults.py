"""Injected losses of a GPU device, and scenarios whose results must not change by them.

A loss is injected by destroying the native device right before a call, as if the driver had lost it there.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import random_embedders
import random_encoders
import random_models

from llamagpu import LLM, Embedder, gpu
from llamagpu.gpu.gate import Gate
from llamagpu.gpu.memory import Memory
from llamagpu.gpu.pipelines import Pipelines
from llamagpu.gpu.plan import Plan

# Where a device can be lost: before a buffer is made, written, copied from; before a pipeline or a plan is made; before
# commands are finished; before a result is mapped, and while a mapping is pending.
POINTS: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "allocate": (Memory, "allocate", lambda memory: memory.handle),
    "write": (Gate, "write", lambda gate: gate._handle),
    "encode": (Memory, "encoder", lambda memory: memory.handle),
    "submit": (Gate, "submit", lambda gate: gate._handle),
    "read": (Gate, "read", lambda gate: gate._handle),
    "pending map": (Gate, "_poll_until", lambda gate: gate._handle),
    "compile": (Pipelines, "_compile", lambda pipelines: pipelines._handle),
    "bind": (Plan, "_ready", lambda plan: plan._memory.handle),
}


@dataclass
class Fault:
    """Destroys the native device before call number ``at`` of a point, once; None counts the calls only."""

    point: str
    at: int | None = None
    calls: int = 0
    fired: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def injected(self) -> Iterator[Fault]:
        """Watch the calls inside the block."""
        owner, name, handle_of = POINTS[self.point]
        real = getattr(owner, name)

        def call(this: Any, *args: Any, **kwargs: Any) -> Any:
            with self._lock:
                now = self.calls == self.at
                self.calls += 1
            if now:
                self.fired = True
                handle_of(this).destroy()
            return real(this, *args, **kwargs)

        setattr(owner, name, call)
        try:
            yield self
        finally:
            setattr(owner, name, real)


# --- scenarios: each gives a function that can run several times, and returns what must not change ---------------


@contextlib.contextmanager
def load() -> Iterator[Callable[[], Any]]:
    """Load a model and generate."""

    def run() -> Any:
        with LLM() as llm:
            return llm.generate("Once upon a time", max_tokens=6).token_ids

    yield run


@contextlib.contextmanager
def generate() -> Iterator[Callable[[], Any]]:
    """Greedy and sampled generations at once, one of them with penalties and a long prompt."""
    with LLM() as llm:
        long = "There was a little dog. " * 40

        def run() -> Any:
            streams = [
                llm.stream("Once upon a time", max_tokens=24),
                llm.stream("The dog", max_tokens=24, temperature=0.9, seed=3),
                llm.stream(long, max_tokens=16, temperature=0.7, top_k=30, repetition_penalty=1.2, seed=4),
            ]
            return [stream.result.token_ids for stream in streams]

        yield run


@contextlib.contextmanager
def logits() -> Iterator[Callable[[], Any]]:
    """Logits of a prompt of two chunks."""
    config = random_models.config()
    with tempfile.TemporaryDirectory() as folder:
        random_models.write_model(Path(folder), config, random_models.tensors(config, 5))
        with LLM(folder) as llm:
            yield lambda: llm.logits([i % 100 for i in range(530)], first=510)


@contextlib.contextmanager
def embed() -> Iterator[Callable[[], Any]]:
    """Vectors of an encoder."""
    raw = random_encoders.CONFIGS["bert"]
    texts = [" ".join(f"a{i}" for i in range(n)) for n in range(1, 60)]
    with tempfile.TemporaryDirectory() as folder:
        random_encoders.write_model(Path(folder), raw, random_encoders.tensors(raw, 1))
        with Embedder(folder, pooling="mean") as embedder:
            yield lambda: embedder.encode(texts)


@contextlib.contextmanager
def two_models() -> Iterator[Callable[[], Any]]:
    """A model that generates and a decoder that embeds, on one device."""
    with (
        gpu.open() as device,
        tempfile.TemporaryDirectory() as folder,
        LLM(device=device) as llm,
        Embedder(random_embedders.write(Path(folder), "qwen3-last"), device=device) as embedder,
    ):

        def run() -> Any:
            stream = llm.stream("Once upon a time", max_tokens=20)
            vectors = embedder.encode(random_embedders.texts()[:5])
            return stream.result.token_ids, vectors

        yield run


@contextlib.contextmanager
def two_devices() -> Iterator[Callable[[], Any]]:
    """Two models, each on a device of its own; one of them is lost."""
    with LLM() as one, LLM() as two:

        def run() -> Any:
            streams = [llm.stream("Once upon a time", max_tokens=12) for llm in (one, two)]
            return [stream.result.token_ids for stream in streams]

        yield run


@contextlib.contextmanager
def tuning() -> Iterator[Callable[[], Any]]:
    """Load a model, and measure the kernels for it."""
    config = random_models.config(hidden_size=64, num_hidden_layers=1)
    with tempfile.TemporaryDirectory() as folder:
        random_models.write_model(Path(folder), config, random_models.tensors(config, 5))

        def run() -> Any:
            with LLM(folder, tune=True) as llm:
                return len(llm.generate([1, 2, 3], max_tokens=4).token_ids)

        yield run


def _steady(
    scenario: Callable[[], contextlib.AbstractContextManager[Callable[[], Any]]],
) -> Callable[[], contextlib.AbstractContextManager[Callable[[], Any]]]:
    """A scenario with one step a submission: otherwise the number of its calls depends on the time that steps take."""

    @contextlib.contextmanager
    def steady() -> Iterator[Callable[[], Any]]:
        with mock.patch("llamagpu.engine.rate.MOST_STEPS", 1), scenario() as run:
            yield run

    return steady


SCENARIOS = {f.__name__: _steady(f) for f in (load, generate, logits, embed, two_models, two_devices, tuning)}


def same(found: Any, expected: Any) -> bool:
    """Whether two results are equal; arrays as far as a recomputed prompt may differ in its last bits."""
    if isinstance(expected, (tuple, list)) and not isinstance(expected[0], int):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, np.ndarray):
        return bool(np.allclose(found, expected, atol=1e-5))
    return bool(found == expected)


def calls(run: Callable[[], Any], point: str) -> int:
    """How often a scenario passes a point."""
    with Fault(point).injected() as fault:
        run()
    return fault.calls


def lose(device: gpu.Device) -> None:
    """Lose a device now, between two calls."""
    device.call(lambda: device.memory.handle.destroy())
