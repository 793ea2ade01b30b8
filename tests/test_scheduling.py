"""Requests that run together: they share steps and passes, give up pages and resume, and keep the bits of lone runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import random_models

from llamagpu import LLM, Result, gpu
from llamagpu.model import sizes

PROMPT = "Once upon a time"
PROMPTS = [PROMPT, "One day, a girl", "The cat", "Tom and his dog went to the park. They saw a big", "Lily", "It was"]
KINDS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "seed": 3},
    {"temperature": 0.9, "seed": 4, "top_k": 20, "top_p": 0.9},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5},
    {"logit_bias": {5: 3.0, 13: -4.0}, "temperature": 0.7, "seed": 8, "frequency_penalty": 0.3},
    {"logprobs": 3},
]


def together(llm: LLM, requests: list[tuple[str, dict[str, Any]]]) -> list[Result]:
    """The results of requests that are all submitted before the first one runs."""
    streams: list[Any] = []
    llm.device.call(lambda: streams.extend(llm.stream(prompt, **options) for prompt, options in requests))
    return [stream.result for stream in streams]


def facts(result: Result) -> tuple[Any, ...]:
    return result.token_ids, result.text, result.finish_reason, result.logprobs


@pytest.fixture(scope="module")
def small(device: gpu.Device) -> Iterator[LLM]:
    """The bundled model with a cache of one context of 128 tokens, eight pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "_POOLS", ())
        with LLM(device=device, context=128) as llm:
            assert llm.loaded.cache.total == 8
            yield llm


def test_requests_of_all_kinds_share_a_step(story: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [(p, {"max_tokens": 12, **kind}) for p, kind in zip(PROMPTS, KINDS, strict=True)]
    alone = [facts(story.generate(p, **options)) for p, options in requests]
    runner, widths = story._session.engine._runner, []
    original = runner.launch
    monkeypatch.setattr(runner, "launch", lambda batch, steps: widths.append(len(batch)) or original(batch, steps))
    assert [facts(r) for r in together(story, requests)] == alone
    assert max(widths) == len(requests)


def test_steps_that_share_a_submission_change_nothing(story: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight steps of one submission, or one: the same tokens, ends, pages, and texts up to their stop strings."""
    requests = [
        (p, {"max_tokens": 11 + i, "stop": " to", **kind})
        for i, (p, kind) in enumerate(zip(PROMPTS, KINDS, strict=True))
    ]
    engine, steps = story._session.engine, []
    original, found = engine._runner.launch, []
    monkeypatch.setattr(engine._runner, "launch", lambda batch, n: steps.append(n) or original(batch, n))
    monkeypatch.setattr("llamagpu.engine.rate.Rate.landed", lambda *_: None)
    for seconds in (1.0, 0.0001):
        monkeypatch.setattr(engine._runner._rate, "step_seconds", seconds)
        found.append([facts(r) for r in together(story, requests)])
    assert found[0] == found[1]
    assert steps[0] == 1
    assert max(steps) == 8
    assert story.loaded.cache.free_pages == story.loaded.cache.total


def test_prompts_share_a_pass(story: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [(p, {"max_tokens": 3}) for p in PROMPTS]
    alone = [facts(story.generate(p, **options)) for p, options in requests]
    runner, packs = story._session.engine._runner, []
    original = runner.prefill
    monkeypatch.setattr(runner, "prefill", lambda pack: packs.append(len(pack)) or original(pack))
    assert [facts(r) for r in together(story, requests)] == alone
    assert packs == [len(PROMPTS)]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(KINDS[0], id="greedy", marks=pytest.mark.slow),
        pytest.param(KINDS[1], id="drawn", marks=pytest.mark.slow),
        pytest.param(KINDS[4], id="penalties"),
    ],
)
def test_sequences_give_up_their_pages_and_resume(small: LLM, kind: dict[str, Any]) -> None:
    requests = [(p, {"max_tokens": 70, "ignore_eos": True, **kind}) for p in PROMPTS[:4]]
    alone = [facts(small.generate(p, **options)) for p, options in requests]
    before = small.counters
    assert (before.pages, before.pages_used, before.cache_usage) == (8, 0, 0.0)
    streams = [small.stream(p, **options) for p, options in requests]
    next(streams[0])
    assert 0 < small.counters.cache_usage <= 1
    assert [facts(s.result) for s in streams] == alone
    assert small.counters.preemptions > before.preemptions
    assert small.loaded.cache.free_pages == 8
    assert small.loaded.cache.free_slots == 32


def test_a_replay_has_the_bits_of_the_steps(small: LLM) -> None:
    """Log-probabilities show last bits that tokens would hide."""
    options = {"max_tokens": 60, "ignore_eos": True, "logprobs": 5}
    alone = [facts(small.generate(p, **options)) for p in PROMPTS[:3]]
    assert [facts(r) for r in together(small, [(p, options) for p in PROMPTS[:3]])] == alone


def test_a_long_prompt_does_not_stall_a_stream(story: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside running sequences, a pass has the rows that take a tenth of a second at the rate that is known."""
    long = [5 + i % 300 for i in range(300)]
    expected = story.generate(long, max_tokens=3).token_ids
    engine = story._session.engine
    runner, rows, between = engine._runner, [], []
    for rate, most in ((1.0, 16), (1e9, 32), (1e15, 512)):
        with monkeypatch.context() as patch:
            patch.setattr(runner._rate, "work", rate)
            assert runner.chunk_rows(beside=True) == most
            assert runner.chunk_rows(beside=False) == 512
    monkeypatch.setattr(runner, "chunk_rows", lambda beside: 16 if beside else 512)
    prefill, launch = runner.prefill, runner.launch
    monkeypatch.setattr(runner, "prefill", lambda pack: rows.append(sum(n for _, n in pack)) or prefill(pack))

    def noted(batch: Any, steps: int) -> Any:
        between.append(sum(rows))
        rows.clear()
        return launch(batch, steps)

    monkeypatch.setattr(runner, "launch", noted)
    running = story.stream(PROMPT, max_tokens=200, ignore_eos=True)
    next(running)
    assert story.generate(long, max_tokens=3, reuse="none").token_ids == expected
    running.close()
    assert max(between) <= 16
    assert between.count(16) >= 300 // 16 - 1


def test_short_prompts_do_not_wait_for_a_long_one(story: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have every other pass, and the long one the others, so that nobody starves."""
    prompts = [[5 + i % 300 for i in range(200)], *([7 + n] * 20 for n in range(3))]
    options = {"max_tokens": 1, "reuse": "none"}
    alone = [facts(story.generate(p, **options)) for p in prompts]
    runner, passes = story._session.engine._runner, []
    prefill = runner.prefill
    monkeypatch.setattr(runner, "chunk_rows", lambda beside: 64)
    monkeypatch.setattr(
        runner, "prefill", lambda pack: passes.append([len(s.tokens) for s, _ in pack]) or prefill(pack)
    )
    streams: list[Any] = []
    story.device.call(lambda: streams.extend(story.stream(p, **options) for p in prompts))
    assert [facts(s.result) for s in streams] == alone
    assert passes == [[20, 20], [200], [20], [200], [200], [200]]


@pytest.mark.slow
@pytest.mark.parametrize("tuning", gpu.variants(frozenset(), 0), ids=lambda t: f"{t.matvec}-{t.matmul}-{t.order}")
def test_company_changes_no_bit_in_any_variant(tuning: gpu.Tuning, device: gpu.Device) -> None:
    """Short and long prompts share passes, steps and pages; log-probabilities show last bits."""
    prompts = [[5, 6, 7], list(range(5, 75)), [9] * 9, list(range(100, 118))]
    options = {"max_tokens": 20, "ignore_eos": True, "logprobs": 2}
    with device.using(tuning), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "_POOLS", ())
        with LLM(device=device, context=96, speculate="prompt") as llm:
            alone = [facts(llm.generate(p, **options)) for p in prompts]
            streams: list[Any] = []
            llm.device.call(lambda: streams.extend(llm.stream(p, **options) for p in prompts))
            assert [facts(s.result) for s in streams] == alone


@pytest.mark.slow
@pytest.mark.parametrize("name", ["head80", "gqa", "mistral-window"])
def test_prompts_of_a_pass_do_not_see_each_other(name: str, device: gpu.Device, tmp_path: Path) -> None:
    """Head sizes decide how many rows a workgroup of attention takes."""
    config = random_models.CONFIGS[name]
    random_models.write_model(tmp_path, config, random_models.tensors(config, 1))
    prompts = [random_models.prompt(config, n, n) for n in (7, 31, 3, 17, 50)]
    with LLM(tmp_path, device=device) as llm:
        options = {"max_tokens": 8, "ignore_eos": True, "logprobs": 2, "reuse": "none"}
        alone = [facts(llm.generate(p, **options)) for p in prompts]
        assert [facts(r) for r in llm.generate(prompts, **options)] == alone
