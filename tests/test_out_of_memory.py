"""Allocations that fail, one after another, while a model loads and runs: nothing stays behind, and work goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import random_encoders

from llamagpu import LLM, Embedder, gpu
from llamagpu.errors import OutOfMemoryError
from llamagpu.gpu import native
from llamagpu.gpu.adapter import Adapter
from llamagpu.model import bundled_models

ALL = range(1, 201)  # as far as there are so many
SOME = (1, 20, -2)  # while the model loads, and while it works; -1 is the last one


class Failing:
    """Stands in for the driver of one open device: the allocation number ``at`` fails."""

    def __init__(self, handle: Any):
        self.count, self.at, self._make = 0, 0, handle.create_buffer
        handle.create_buffer = self

    def __call__(self, **options: Any) -> Any:
        self.count += 1
        if self.count == self.at:
            raise native.wgpu.GPUOutOfMemoryError("Not enough memory left.")
        return self._make(**options)

    def arm(self, at: int) -> None:
        """Fail at the allocation ``at`` from now on; 0 is never."""
        self.count, self.at = 0, at


@pytest.fixture
def opened() -> Iterator[tuple[gpu.Device, Failing]]:
    with gpu.open() as device:
        failing = Failing(device.memory.handle)
        yield device, failing
        del device.memory.handle.create_buffer


def held(device: gpu.Device) -> dict[str, int]:
    """Bytes by purpose, but for the staging buffers that a device keeps for later results."""
    return {k: v for k, v in device.ledger.by_purpose().items() if k != "staging"}


def generated(llm: LLM) -> list[Any]:
    """Greedy and sampled sequences in several batches, logits, vectors, and a bound session."""
    out = [llm.generate("Once upon a time", max_tokens=3).token_ids]
    for count in (2, 3, 7):
        prompts = [f"The cat {'and the dog ' * i}" for i in range(count)]
        out += [r.token_ids for r in llm.generate(prompts, max_tokens=2)]
        out += [r.token_ids for r in llm.generate(prompts, max_tokens=2, temperature=0.7, seed=3, logprobs=2)]
    out.append(llm.logits([5, 6, 7]).tolist())
    out.append(llm.embed(["One day", "Tom"], pooling="mean").tolist())
    with ExitStack() as stack:
        ids = llm.device.tensor([5, 6, 7], "u32")
        stack.callback(ids.free)
        logits = llm.device.empty((1, llm.config.vocab_size))
        stack.callback(logits.free)
        stack.enter_context(llm.bind(input_ids=ids, logits=logits)).run()
        return [*out, logits.numpy().tolist()]


def encoded(embedder: Embedder) -> list[Any]:
    return [embedder.encode([f"a{i} " * n for i in range(4)]).tolist() for n in (1, 9, 60)]


def try_each(
    numbers: Iterable[int], opened: tuple[gpu.Device, Failing], load: Callable[..., Any], work: Callable[[Any], Any]
) -> int:
    """Load and work with each of the numbered allocations failing; returns the number of all."""
    device, failing = opened
    for _ in range(2):  # the first time makes pipelines too
        failing.arm(0)
        with load(device=device) as model:
            expected, whole = work(model), model.memory.held["weights"]
    start, count = held(device), failing.count
    for number in sorted({n % (count + 1) for n in numbers if n <= count}):
        failing.arm(number)
        failed = False
        try:
            with load(device=device) as model:
                try:
                    failed = work(model) == expected  # what failed in company ran again alone
                except OutOfMemoryError:  # an error of a call: the model goes on
                    failed = True
                    failing.arm(0)
                    assert work(model) == expected, number
        except OutOfMemoryError as e:
            failed = "ran out of memory" in e.what
        assert failed, number
        failing.arm(0)
        assert held(device) == start, number
        with load(device=device, dtype="int8") as smaller:
            assert smaller.memory.held["weights"] < whole
    return count


def test_some_allocations_that_fail(opened: tuple[gpu.Device, Failing]) -> None:
    def work(llm: LLM) -> list[int]:
        return llm.generate("Once", max_tokens=2).token_ids

    try_each(SOME, opened, lambda **options: LLM(context=64, **options), work)


@pytest.mark.slow
def test_every_allocation_of_a_decoder(opened: tuple[gpu.Device, Failing]) -> None:
    assert try_each(ALL, opened, lambda **options: LLM(context=64, **options), generated) > 60


@pytest.fixture
def encoder(tmp_path: Path) -> Callable[..., Embedder]:
    raw = random_encoders.CONFIGS["bert-wide"]
    path = random_encoders.write_model(tmp_path, raw, random_encoders.tensors(raw, 1))
    return lambda **options: Embedder(path, **options)


def test_some_allocations_of_an_encoder(opened: tuple[gpu.Device, Failing], encoder: Callable[..., Embedder]) -> None:
    try_each(SOME, opened, encoder, encoded)


@pytest.mark.slow
def test_every_allocation_of_an_encoder(opened: tuple[gpu.Device, Failing], encoder: Callable[..., Embedder]) -> None:
    assert try_each(ALL, opened, encoder, encoded) > 30


def test_a_device_that_cannot_allocate_is_our_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """From its very first buffer on; the next model opens."""
    real, at = Adapter.request_device, 0

    def request(adapter: Adapter, baseline: bool) -> Any:
        handle, features = real(adapter, baseline)
        Failing(handle).arm(at)
        return handle, features

    monkeypatch.setattr(Adapter, "request_device", request)
    for number in (1, 2, 3, 4, 20):
        at = number
        with pytest.raises(OutOfMemoryError, match="ran out of memory"):
            LLM(context=32)
    at = 0
    with LLM(context=32) as llm:
        assert llm.generate("Once", max_tokens=1).completion_tokens == 1


def test_a_real_limit_in_the_middle_of_a_generation(device: gpu.Device) -> None:
    """The ledger refuses what a plan needs; the model works again when there is memory."""
    with LLM(bundled_models() / "stories", device=device, context=64) as llm:
        expected = llm.generate("Once upon", max_tokens=3).token_ids
        limit, device.ledger.limit = device.ledger.limit, device.ledger.held()
        try:
            with pytest.raises(OutOfMemoryError, match="do not fit"):
                llm.generate(["Once", "upon", "a"], max_tokens=3, temperature=0.5)
        finally:
            device.ledger.limit = limit
        assert llm.generate("Once upon", max_tokens=3).token_ids == expected
