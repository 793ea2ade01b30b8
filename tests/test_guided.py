"""Masks of grammars in the engine: with a scripted grammar, so that every allowed token is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llamagpu import LLM, gpu
from llamagpu.engine.request import Request, Token
from llamagpu.engine.request import Sequence as Running
from llamagpu.errors import LlamaGPUError
from llamagpu.kernels.step import Settings

PROMPT = "Once upon a time"
Allowed = Callable[[tuple[int, ...]], set[int]]


class Script:
    """A grammar as a function from the tokens so far to those that may follow; none ends the text."""

    def __init__(self, allowed: Allowed, tokens: tuple[int, ...] = ()):
        self.allowed, self.tokens = allowed, tokens

    def copy(self) -> Script:
        return Script(self.allowed, self.tokens)

    def take(self, token: int) -> None:
        if token not in self.allowed(self.tokens):
            raise LlamaGPUError(f"The token {token} is not allowed.")
        self.tokens += (token,)

    @property
    def ended(self) -> bool:
        return not self.allowed(self.tokens)

    def forced(self, most: int) -> list[int]:
        tokens = self.tokens
        while len(self.allowed(tokens)) == 1 and len(tokens) - len(self.tokens) < most:
            tokens += tuple(self.allowed(tokens))
        return list(tokens[len(self.tokens) :])

    def masks(self, out: npt.NDArray[np.uint32], guesses: Sequence[int]) -> int:
        for i in range(len(guesses) + 1):
            found = self.allowed((*self.tokens, *guesses[:i]))
            if not found:
                return i - 1
            bits = np.zeros(32 * out.shape[1], bool)
            bits[list(found)] = True
            out[i] = np.packbits(bits, bitorder="little").view(np.uint32)
        return len(guesses)


def listed(*steps: set[int]) -> Allowed:
    return lambda tokens: steps[len(tokens)] if len(tokens) < len(steps) else set()


FEW = set(range(300, 340))
RUN = listed(FEW, {7}, {8}, {9}, {10}, {11}, {12}, FEW, FEW, {7}, FEW)
KINDS = (
    Settings(),
    Settings(temperature=1.0, seed=3),
    Settings(temperature=0.9, seed=4, top_k=5, top_p=0.9, logprobs=2),
    Settings(repetition_penalty=1.3),
)


def start(llm: LLM, settings: Settings, allowed: Allowed | None, limit: int = 24) -> Running:
    guide: Any = None if allowed is None else Script(allowed)
    request = Request(tuple(llm.tokenize(PROMPT)), limit, settings, guide=guide)
    return llm._session.engine.submit(request)


def finish(sequence: Running) -> tuple[list[Token], Any]:
    tokens = []
    while isinstance(event := sequence.events.get(timeout=60), Token):
        tokens.append(event)
    return tokens, event


@pytest.fixture(scope="module")
def guessing(device: gpu.Device) -> Iterator[LLM]:
    with LLM(device=device, speculate="prompt") as llm:
        yield llm


def test_only_allowed_tokens_come_alone_and_in_company(
    story: LLM, guessing: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests with and without grammars, of all kinds: the same tokens alone, together, with drafts, and where the
    next logits are computed before the masks."""
    monkeypatch.setattr("llamagpu.engine.rate.Rate.landed", lambda *_: None)
    for llm in (story, guessing):
        monkeypatch.setattr(llm._session.engine._runner._rate, "step_seconds", 1.0)
    asked = [(s, allowed) for s in KINDS for allowed in (RUN, None, listed(FEW, FEW))]
    alone = [finish(start(story, *a)) for a in asked]
    for (_, allowed), (tokens, reason) in zip(asked, alone, strict=True):
        if allowed is not None:
            ids = tuple(t.id for t in tokens)
            assert reason == "stop"
            assert not allowed(ids)
            assert all(token in allowed(ids[:i]) for i, token in enumerate(ids))
    for llm, seconds in ((story, 1.0), (guessing, 1.0), (story, 0.0001)):
        monkeypatch.setattr(llm._session.engine._runner._rate, "step_seconds", seconds)
        assert [finish(s) for s in [start(llm, *a) for a in asked]] == alone
        assert [finish(start(llm, *a)) for a in asked[::4]] == alone[::4]


def test_the_draw_is_the_best_of_the_allowed(story: LLM) -> None:
    logits = story.logits(story.tokenize(PROMPT))[-1]
    [token], _ = finish(start(story, Settings(logprobs=1), listed(FEW)))
    assert token.id == max(FEW, key=lambda t: logits[t])
    log_sum = np.log(np.exp(logits.astype(np.float64)).sum())
    assert token.logprob == pytest.approx(logits[token.id] - log_sum, abs=1e-4)  # of the raw logits


def test_forced_tokens_share_a_step(story: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, steps = story._session.engine._runner, []
    verify = runner.verify
    monkeypatch.setattr(runner, "verify", lambda drafts: steps.append(len(drafts[0].tokens)) or verify(drafts))
    tokens, _ = finish(start(story, Settings(), RUN))
    assert len(tokens) == 11
    assert steps == [6, 0, 1]  # the first token comes from the prompt


def test_an_end_by_length_a_dead_end_and_company(story: LLM) -> None:
    """A grammar without a next token ends its own sequence with an error, and no other."""

    def dead(tokens: tuple[int, ...]) -> set[int]:
        if len(tokens) == 3:
            raise LlamaGPUError("The grammar has a dead end.")
        return FEW

    expected = finish(start(story, Settings(), None))
    running = [start(story, Settings(), allowed) for allowed in (dead, None, lambda _: FEW)]
    (broken, error), plain, (cut, reason) = map(finish, running)
    assert isinstance(error, LlamaGPUError)
    assert len(broken) <= 3
    assert plain == expected
    assert reason == "length"
    assert len(cut) == 24
