"""Drafts: guesses of the next tokens of a sequence, which one step verifies.

The step has a row for every guess, in the kernels that decode one token. A row's bits do not depend on the others, and
a drawn token depends on the seed and the position alone, so that the tokens are those of single steps.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from typing import Protocol

from llamagpu.engine.pace import Pace
from llamagpu.engine.request import Sequence
from llamagpu.engine.runner import Runner

PROMPT = "prompt"  # the drafter that looks in the text so far
_LONGEST, _SHORTEST = 4, 2  # tokens that prompt look-up searches for


class Drafter(Protocol):
    """Guesses the next tokens of sequences."""

    def guess(self, sequences: Tokens[tuple[Sequence, int]]) -> list[list[int]]:
        """Up to so many tokens for each sequence; none where it has no guess. On the device thread."""

    def end(self, sequence: Sequence) -> None:
        """Forget a sequence."""

    def free(self) -> None:
        """Free what the drafter holds, but for its model."""


class PromptLookup:
    """Guesses that a text repeats itself: the tokens that followed the last occurrence of its newest tokens (prompt
    look-up decoding, Saxena 2023; Yang et al. 2023, arXiv:2304.04487)."""

    def guess(self, sequences: Tokens[tuple[Sequence, int]]) -> list[list[int]]:
        """See ``Drafter.guess``."""
        return [_following(sequence.tokens, most) for sequence, most in sequences]

    def end(self, sequence: Sequence) -> None:
        """Nothing is kept."""

    def free(self) -> None:
        """Nothing is held."""


def _following(tokens: list[int], most: int) -> list[int]:
    """What followed the last occurrence of the newest tokens, the longest run of them that occurs before."""
    for n in range(_LONGEST, _SHORTEST - 1, -1):
        end = tokens[-n:]
        for begin in range(len(tokens) - n - 1, -1, -1):
            if tokens[begin] == end[0] and tokens[begin : begin + n] == end:
                return tokens[begin + n : begin + n + most]
    return []


def may_guess(sequence: Sequence) -> bool:
    """Whether the next step of a sequence should have guesses. Penalties depend on every token before, so that rows of
    one step cannot have them."""
    if sequence.request.settings.counted or sequence.alone:
        return False
    if sequence.pace is None:
        sequence.pace = Pace()
    left = sequence.request.limit - sequence.made - sequence.in_flight
    return sequence.pace.due and left > 1


def guess(drafter: Drafter, batch: Tokens[Sequence], runner: Runner) -> list[tuple[Sequence, list[int]]]:
    """Guesses for each sequence of a batch, as many as a step and the cache have room for; empty if there are none at
    all. Nothing may be in flight."""
    guesses = _guesses(drafter, batch, runner)
    for s in batch:
        if s.pace is not None and s not in guesses:
            s.pace.stepped()
    return [(s, guesses.get(s, [])) for s in batch] if guesses else []


def _guesses(drafter: Drafter, batch: Tokens[Sequence], runner: Runner) -> dict[Sequence, list[int]]:
    due = [s for s in batch if may_guess(s)]
    if not due:
        return {}
    room = runner.room(batch) // len(due)
    wanted = []
    for s in due:
        assert s.pace is not None
        wanted.append((s, min(s.pace.width, room, s.request.limit - s.made - 1)))
    out = {}
    for (s, _), tokens in zip(wanted, drafter.guess(wanted), strict=True):
        assert s.pace is not None
        if tokens and runner.reserve(s, len(tokens) + 1):
            out[s] = tokens
        else:
            s.pace.judged(0, 0)
    return out
