"""Lost devices: what was running continues with the same results, and what cannot is an error in time."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import faults
import numpy as np
import pytest
import random_encoders

from llamagpu import LLM, Embedder, gpu, kernels
from llamagpu.errors import DeviceLostError, OutOfMemoryError
from llamagpu.gpu import native, recovery
from llamagpu.gpu.gate import Gate

PROMPT = "Once upon a time"


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loss is recovered from, however soon it follows another."""
    monkeypatch.setattr(recovery, "AGAIN_SECONDS", 0.0)


def check(scenario: str, points: dict[str, tuple[float, ...]]) -> None:
    """Run a scenario with losses at parts of the calls of points: 0 is the first one, 1 nearly the last. Batches of
    streams depend on time, and the number of calls with them."""
    with faults.SCENARIOS[scenario]() as run:
        expected = run()
        for point, parts in points.items():
            count = faults.calls(run, point)
            for at in sorted({int(part * 0.9 * (count - 1)) for part in parts}):
                with faults.Fault(point, at).injected() as fault:
                    found = run()
                assert fault.fired, (point, at, count)
                assert faults.same(found, expected), (point, at, count)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("scenario", "points"),
    [
        ("generate", {"submit": (0.5,), "pending map": (0.6,)}),
        ("embed", {"write": (0.5,), "read": (1,)}),
        ("load", {"allocate": (0, 0.7)}),
        pytest.param("two_models", {"submit": (0.3,), "read": (0.8,)}, marks=pytest.mark.slow),
        pytest.param("two_devices", {"submit": (0.5,)}, marks=pytest.mark.slow),
        pytest.param("logits", {"read": (0, 1), "write": (0,)}, marks=pytest.mark.slow),
        pytest.param("generate", dict.fromkeys(("write", "encode", "read"), (0, 0.3, 1)), marks=pytest.mark.slow),
        pytest.param("load", dict.fromkeys(faults.POINTS, (0, 0.5, 1)), marks=pytest.mark.slow),
        pytest.param("embed", dict.fromkeys(("encode", "pending map"), (0, 1)), marks=pytest.mark.slow),
    ],
)
def test_losses_change_no_result(scenario: str, points: dict[str, tuple[float, ...]]) -> None:
    check(scenario, points)


def test_a_second_loss_within_a_minute_is_final(caplog: pytest.LogCaptureFixture) -> None:
    """Every thread that waits gets the error within 2 seconds, and so does every later call."""
    with LLM() as llm:
        expected = llm.generate(PROMPT, max_tokens=10).text
        faults.lose(llm.device)
        assert llm.generate(PROMPT, max_tokens=10).text == expected  # it was idle: the next call finds the loss
        assert [r.levelno for r in caplog.records] == [logging.WARNING] * 2
        streams = [llm.stream(PROMPT, max_tokens=400) for _ in range(3)]
        next(streams[0])
        seconds: list[float] = []

        def read(stream: object) -> None:
            begin = time.monotonic()
            with pytest.raises(DeviceLostError, match="lost twice within 60 seconds"):
                _ = stream.result  # type: ignore[attr-defined]
            seconds.append(time.monotonic() - begin)

        threads = [threading.Thread(target=read, args=(s,)) for s in streams]
        for thread in threads:
            thread.start()
        faults.lose(llm.device)
        for thread in threads:
            thread.join(timeout=10)
        assert len(seconds) == 3
        assert max(seconds) < 2
        for call in (lambda: llm.generate(PROMPT), lambda: llm.embed("a", pooling="mean")):
            with pytest.raises(DeviceLostError):
                call()
        assert llm.device.recovery.losses == 1


@pytest.mark.usefixtures("often")
def test_a_device_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait past its deadline is a loss: the model goes on with another device."""
    with LLM() as llm:
        expected = llm.generate(PROMPT, max_tokens=10).token_ids
        real, hung = Gate._poll_until, [True]

        def poll(gate: Gate, answer: list[int]) -> None:
            if not hung:
                real(gate, answer)
                return
            hung.clear()
            with monkeypatch.context() as patch:
                patch.setattr("llamagpu.gpu.gate.DEADLINE_SECONDS", -1.0)
                patch.setattr(native, "libf", SimpleNamespace(wgpuDevicePoll=lambda *given: None))
                real(gate, answer)

        monkeypatch.setattr(Gate, "_poll_until", poll)
        assert llm.generate(PROMPT, max_tokens=10).token_ids == expected
        assert (hung, llm.device.recovery.losses) == ([], 1)


@pytest.mark.usefixtures("often")
def test_what_cannot_be_made_again_is_an_error() -> None:
    """Tensors and bound sessions are lost; new ones work, and so does the model."""
    with LLM() as llm:
        device, ones = llm.device, np.ones((2, 8), np.float32)
        kept, ids, out = device.tensor(ones), device.tensor([1, 2, 3], "u32"), device.empty((1, llm.config.vocab_size))
        plan = device.record(lambda: kernels.add(kept, kept))
        bound = llm.bind(input_ids=ids, logits=out)
        bound.run()
        expected = out.numpy()
        faults.lose(device)
        with pytest.raises(DeviceLostError, match="The GPU device was lost"):
            device.synchronize()
        device.synchronize()
        for call in (kept.numpy, lambda: kernels.add(kept, kept), lambda: kept.write(ones), bound.run):
            with pytest.raises(DeviceLostError, match="lost with their"):
                call()
        with pytest.raises(DeviceLostError):
            device.call(plan.run)
        assert (kernels.add(device.tensor(ones), device.tensor(ones)).numpy() == 2).all()
        ids, out = device.tensor([1, 2, 3], "u32"), device.empty((1, llm.config.vocab_size))
        with llm.bind(input_ids=ids, logits=out) as bound:
            bound.run()
            assert np.array_equal(out.numpy(), expected)


@pytest.mark.usefixtures("often")
def test_a_model_that_cannot_be_loaded_again_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random_encoders.CONFIGS["bert"]
    random_encoders.write_model(tmp_path, raw, random_encoders.tensors(raw, 1))
    with gpu.open() as device, LLM(device=device) as llm, Embedder(tmp_path, device=device, pooling="mean") as embedder:
        expected = llm.generate(PROMPT, max_tokens=5).token_ids

        def refuse() -> None:
            raise OutOfMemoryError("No room.")

        monkeypatch.setattr(embedder._model._session, "_remake", refuse)
        faults.lose(device)
        assert llm.generate(PROMPT, max_tokens=5).token_ids == expected
        with pytest.raises(OutOfMemoryError, match="No room"):
            embedder.encode("a1")


def test_closing_a_lost_model() -> None:
    llm = LLM()
    held = llm.device.ledger.by_purpose()
    faults.lose(llm.device)
    with pytest.raises(DeviceLostError):
        llm.device.synchronize()
    llm.device.synchronize()
    again = llm.device.ledger.by_purpose()
    assert (again["weights"], again["kv"]) == (held["weights"], held["kv"])
    faults.lose(llm.device)
    llm.close()
    assert llm.device.ledger.held() == 0
