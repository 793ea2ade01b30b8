"""Models in a process of their own: the same results, also when the process dies."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_encoders

from llamagpu import LLM, CrossEncoder, Embedder, gpu
from llamagpu.engine import isolated
from llamagpu.errors import ContextFullError, DeviceLostError, NoAdapterError, UsageError

PROMPTS = ["Once upon a time", "The little dog"]
SIGNAL = signal.SIGABRT if sys.platform != "win32" else signal.SIGTERM  # as when the driver aborts


def kill(model: Any) -> None:
    os.kill(model._session._supervisor._process.pid, SIGNAL)


def test_an_isolated_model_survives_an_abort(story: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are those of a model in this process, with and without a death; the second one is final."""
    settings = {"max_tokens": 30, "temperature": 0.8, "seed": 5, "logprobs": 2}
    expected = [story.generate(PROMPTS[0], max_tokens=30), story.generate(PROMPTS[1], **settings)]
    vectors = story.embed(PROMPTS, pooling="mean")
    with LLM(isolate=True) as llm:
        streams = [llm.stream(PROMPTS[0], max_tokens=30), llm.stream(PROMPTS[1], **settings)]
        for stream in streams:
            next(stream)
        kill(llm)
        assert [s.result.token_ids for s in streams] == [r.token_ids for r in expected]
        assert [t.id for t in streams[1].result.logprobs] == expected[1].token_ids
        assert np.array_equal(llm.embed(PROMPTS, pooling="mean"), vectors)
        assert np.allclose(llm.logits([1, 2, 3]), story.logits([1, 2, 3]))
        assert llm._session._supervisor.deaths == 1
        assert llm.counters.pages == story.counters.pages
        assert llm.counters.pages_used == 0
        long = [*range(2, 50)]
        assert [llm.generate(long, max_tokens=1).cached_tokens for _ in range(2)] == [0, 32]
        with pytest.raises(UsageError, match="no save_cache here"):
            llm.save_cache("prompts")
        endless = llm.stream(PROMPTS[0], max_tokens=400, ignore_eos=True)
        next(endless)
        endless.close()
        assert endless.result.finish_reason == "cancelled"
        running = llm.stream(PROMPTS[0], max_tokens=400, ignore_eos=True)
        begin = time.monotonic()
        kill(llm)
        for call in (lambda: running.result, lambda: llm.generate("a"), lambda: llm.embed("a", pooling="mean")):
            with pytest.raises(DeviceLostError, match="The process with the model ended"):
                call()
        assert time.monotonic() - begin < 2
    with pytest.raises(DeviceLostError, match="closed"):
        llm.generate("a")


@pytest.mark.slow
def test_an_isolated_model_dies_often(story: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "AGAIN_SECONDS", 0.0)
    expected = story.generate(PROMPTS[0], max_tokens=40).token_ids
    with LLM(isolate=True, speculate="prompt") as llm:
        llm.generate("The cat sat. The cat sat. The cat", max_tokens=20)
        counted = llm.counters
        assert counted.drafted > 0
        for after in (0, 3, 20):
            stream = llm.stream(PROMPTS[0], max_tokens=40)
            for _ in range(after):
                next(stream)
            kill(llm)
            assert stream.result.token_ids == expected
        assert llm.counters.drafted >= counted.drafted  # also those of processes that died
        assert llm.counters.accepted >= counted.accepted


@pytest.mark.slow
def test_isolated_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "AGAIN_SECONDS", 0.0)
    raw = random_encoders.CONFIGS["bert"]
    random_encoders.write_model(tmp_path, raw, random_encoders.tensors(raw, 1))
    random_encoders.write_model(tmp_path / "ranker", raw, random_encoders.classifier(raw, 1, 1))
    texts = [" ".join(f"a{i}" for i in range(n % 90 + 1)) for n in range(300)]
    with Embedder(tmp_path, pooling="mean") as embedder, CrossEncoder(tmp_path / "ranker") as ranker:
        expected, scores = embedder.encode(texts), ranker.predict([("a1 a2", t) for t in texts])
    with Embedder(tmp_path, pooling="mean", isolate=True) as embedder:
        lazy = embedder.encode(iter(texts))
        found = [next(lazy)]
        kill(embedder._model)
        assert np.array_equal([*found, *lazy], expected)
        assert embedder._model._session._supervisor.deaths == 1
        with pytest.raises(UsageError, match="has no bind here"):
            embedder.bind()
    with CrossEncoder(tmp_path / "ranker", isolate=True) as ranker:
        assert np.array_equal(ranker.predict([("a1 a2", t) for t in texts]), scores)


@pytest.mark.slow
def test_errors_of_isolated_models(device: gpu.Device) -> None:
    with pytest.raises(NoAdapterError):
        LLM(device="none", isolate=True)
    with pytest.raises(UsageError, match="opens a device of its own"):
        LLM(device=device, isolate=True)
    with LLM(isolate=True) as llm:
        with pytest.raises(ContextFullError):
            llm.generate("a " * 5000)
        for call in (lambda: llm.bind(input_ids=None), lambda: llm.device.synchronize()):
            with pytest.raises(UsageError):
                call()
        assert "software" in str(llm.device.adapter)
