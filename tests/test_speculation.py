"""Speculation: guesses that a step verifies change no token and no last bit, whether they are right or wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import random_models
from conftest import ROOT
from test_scheduling import KINDS, PROMPTS, facts, together

from llamagpu import LLM, gpu
from llamagpu.engine.drafts import PromptLookup
from llamagpu.engine.pace import MOST, Pace
from llamagpu.engine.params import sampling_params
from llamagpu.engine.request import Draft
from llamagpu.errors import ModelNotFoundError, UsageError

REPEATS = "The cat sat on the mat. The dog sat on the mat. The cat sat on the"


@pytest.fixture(scope="module")
def guessing(device: gpu.Device) -> Iterator[LLM]:
    with LLM(device=device, speculate="prompt") as llm:
        yield llm


def test_prompt_lookup_follows_the_longest_repeat() -> None:
    class Text:
        def __init__(self, tokens: list[int]):
            self.tokens = tokens

    def guess(tokens: list[int], most: int = 4) -> list[int]:
        return PromptLookup().guess([(Text(tokens), most)])[0]  # type: ignore[list-item]

    assert guess([1, 2, 3, 9, 9, 2, 3, 7, 1, 2, 3]) == [9, 9, 2, 3]  # of three tokens, not the later one of two
    assert guess([5, 6, 1, 5, 6, 2, 5, 6], most=2) == [2, 5]  # the last occurrence
    assert guess([1, 2, 3]) == []
    assert guess([7, 7, 7, 7]) == [7]
    assert guess([1]) == []


def test_the_pace_follows_the_guesses() -> None:
    pace = Pace()
    for _ in range(4):
        pace.judged(pace.width, pace.width)
    assert (pace.width, pace.due) == (MOST, True)
    pace.judged(15, 6)
    assert pace.width == 7
    steps = guesses = 0
    while steps < 256:  # always wrong from here on
        if pace.due:
            guesses += pace.width
            pace.judged(pace.width, 0)
        else:
            pace.stepped()
        steps += 1
    assert guesses <= 16  # rows beside 256 steps


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_guesses_change_nothing(number: int, guessing: LLM, story: LLM) -> None:
    options, before = {"max_tokens": 60, "ignore_eos": True, **KINDS[number]}, guessing.counters
    assert facts(guessing.generate(REPEATS, **options)) == facts(story.generate(REPEATS, **options))
    drafted, accepted = (getattr(guessing.counters, k) - getattr(before, k) for k in ("drafted", "accepted"))
    assert (drafted > 0) == (not sampling_params(512, **options).settings.counted)
    assert 0 <= accepted <= min(drafted, 60)


def test_guesses_of_several_sequences_share_a_step(guessing: LLM, story: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [(REPEATS, {"max_tokens": 40, **kind}) for kind in KINDS]
    runner, widths = guessing._session.engine._runner, []
    original = runner.verify

    def noted(drafts: list[Draft]) -> Any:
        widths.append(sum(1 for draft in drafts if draft.tokens))
        return original(drafts)

    monkeypatch.setattr(runner, "verify", noted)
    assert [facts(r) for r in together(guessing, requests)] == [
        facts(story.generate(p, **options)) for p, options in requests
    ]
    assert max(widths) > 1


class Wrong:
    """Guesses tokens that do not come."""

    def guess(self, sequences: Any) -> list[list[int]]:
        return [[(s.tokens[-1] + 1) % 2000 + 7] * most for s, most in sequences]

    def end(self, sequence: Any) -> None:
        pass

    def free(self) -> None:
        pass


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2]], ids=["greedy", "drawn"])
def test_wrong_guesses_change_nothing(kind: dict, device: gpu.Device, story: LLM) -> None:
    with LLM(device=device, speculate="prompt") as llm:
        engine = llm._session.engine
        engine._drafter = Wrong()
        options = {"max_tokens": 100, "ignore_eos": True, **kind}
        assert facts(llm.generate(PROMPTS[0], **options)) == facts(story.generate(PROMPTS[0], **options))


def test_a_stop_inside_right_guesses_ends_the_text(guessing: LLM, story: LLM) -> None:
    whole = story.generate(REPEATS, max_tokens=40, ignore_eos=True)
    for stop in (5, 12, 13):
        options = {"max_tokens": 40, "ignore_eos": True, "stop_token_ids": [whole.token_ids[stop]]}
        assert facts(guessing.generate(REPEATS, **options)) == facts(story.generate(REPEATS, **options))
        limited = {"max_tokens": stop, "ignore_eos": True}
        assert facts(guessing.generate(REPEATS, **limited)) == facts(story.generate(REPEATS, **limited))


def test_an_unknown_drafter_is_refused(device: gpu.Device) -> None:
    with pytest.raises(UsageError, match="speculate"):
        LLM(device=device, speculate=7)  # type: ignore[arg-type]
    with pytest.raises(ModelNotFoundError):
        LLM(device=device, speculate="./magic")


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_a_draft_model_changes_nothing(number: int, drafted: LLM, story: LLM) -> None:
    options = {"max_tokens": 40, "ignore_eos": True, **KINDS[number]}
    assert facts(drafted.generate(PROMPTS[number], **options)) == facts(story.generate(PROMPTS[number], **options))


@pytest.fixture(scope="module")
def drafted(device: gpu.Device) -> Iterator[LLM]:
    """The bundled model, with itself as its draft."""
    with LLM(device=device, speculate=str(ROOT / "weights" / "stories")) as llm:
        yield llm


def test_drafts_of_several_sequences(drafted: LLM, story: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [(p, {"max_tokens": 30, **kind}) for p, kind in zip(PROMPTS, KINDS, strict=True)]
    runner, right = drafted._session.engine._runner, []
    original = runner.verify

    def noted(drafts: list[Draft]) -> Any:
        out = original(drafts)
        right.extend(len(o) - 1 for o, draft in zip(out, drafts, strict=True) if draft.tokens)
        return out

    monkeypatch.setattr(runner, "verify", noted)
    assert [facts(r) for r in together(drafted, requests)] == [
        facts(story.generate(p, **options)) for p, options in requests
    ]
    assert sum(right) > 60  # drawn tokens agree, too: both models draw with the same noise
    cache = drafted._session.engine._drafter._model.cache
    assert cache.free_pages == cache.total


def test_a_draft_of_another_vocabulary_is_refused(device: gpu.Device, tmp_path: Path) -> None:
    raw = random_models.CONFIGS["gqa"]
    other = random_models.write_model(tmp_path / "other", raw, random_models.tensors(raw, 0))
    with pytest.raises(UsageError, match="different vocabularies"):
        LLM(device=device, speculate=other)


def test_a_draft_model_catches_up_after_a_pause(drafted: LLM, story: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tokens are made without guesses; then the draft model, which is the model itself, is right again."""
    runner, rounds = drafted._session.engine._runner, []
    original, pause = runner.verify, iter([0, 90])

    def noted(drafts: list[Draft]) -> Any:
        out = original(drafts)
        draft, (results,) = drafts[0], out
        rounds.append((len(draft.tokens), len(results) - 1))
        assert draft.pace is not None
        draft.pace.pause = next(pause, 0)
        return out

    monkeypatch.setattr(runner, "verify", noted)
    options = {"max_tokens": 200, "ignore_eos": True}
    assert facts(drafted.generate(PROMPTS[0], **options)) == facts(story.generate(PROMPTS[0], **options))
    assert all(right == guessed for guessed, right in rounds[:-1])
    assert len(rounds) > 4
