"""Drafts: guesses of the next tokens of a sequence, which one step verifies. A grammar that leaves no choice guesses
too, and is always right.

The step has a row for every guess, in the kernels that decode one token. A row's bits do not depend on the others, and
a drawn token depends on the seed and the position alone, so that the tokens are those of single steps.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import replace
from typing import Protocol

from llamagpu.engine.pace import Pace
from llamagpu.engine.request import Draft, Sequence
from llamagpu.engine.runner import Runner
from llamagpu.model.forward import BATCHES, bucket

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


def must_land(sequence: Sequence, drafter: Drafter | None) -> bool:
    """Whether the next step of a sequence needs all its tokens on the host, for guesses or for a mask."""
    return sequence.guide is not None or (drafter is not None and _may_guess(sequence))


def guess(drafter: Drafter | None, batch: Tokens[Sequence], runner: Runner) -> list[Draft]:
    """What the next step verifies for each sequence of a batch, as much as the step and the cache have room for; empty
    if nothing was guessed and no sequence needs a mask. Nothing may be in flight if ``must_land``."""
    due = [s for s in batch if drafter is not None and _may_guess(s)]
    guided = [s for s in batch if s.guide is not None]
    found = _found(drafter, due, guided, runner.room(batch), runner) if due or guided else {}
    found = _fitted(found, len(batch))
    for s in batch:
        if s.pace is not None and s not in found:
            s.pace.stepped()
    return [found.get(s, Draft(s)) for s in batch] if found or guided else []


def _fitted(found: dict[Sequence, Draft], batch: int) -> dict[Sequence, Draft]:
    """The drafts without the tokens for which a step of ``batch`` rows would take the next larger plan, to fill less
    than three quarters of it: padding rows cost what others do."""
    rows = batch + sum(len(d.tokens) for d in found.values())
    size = bucket(rows, BATCHES)
    surplus = rows - size // 2 if size > bucket(batch, BATCHES) and 4 * rows < 3 * size else 0
    out = dict(found)
    for _ in range(surplus):
        longest = max(out.values(), key=lambda d: len(d.tokens))
        out[longest.sequence] = replace(longest, tokens=longest.tokens[:-1])
    return {s: d for s, d in out.items() if d.tokens}


def _may_guess(sequence: Sequence) -> bool:
    """Whether the next step of a sequence should have a drafter's guesses."""
    if not _takes_guesses(sequence):
        return False
    if sequence.pace is None:
        sequence.pace = Pace()
    left = sequence.request.limit - sequence.made - sequence.in_flight
    return sequence.pace.due and left > 1


def _takes_guesses(sequence: Sequence) -> bool:
    """Whether a step may have several rows of a sequence. Penalties depend on every token before, so that rows of one
    step cannot have them."""
    return not (sequence.request.settings.counted or sequence.alone)


def _found(
    drafter: Drafter | None, due: list[Sequence], guided: list[Sequence], room: int, runner: Runner
) -> dict[Sequence, Draft]:
    """Tokens that grammars force, and the drafter's guesses for the other sequences."""
    share = room // len({*due, *guided})
    out = {}
    for s in guided:
        most = min(share, s.request.limit - s.made - 1)
        assert s.guide is not None
        forced = s.guide.forced(most) if most > 0 and _takes_guesses(s) else []
        if forced and runner.reserve(s, len(forced) + 1):
            out[s] = Draft(s, tuple(forced))
    others = [s for s in due if s not in out]
    return out | (_drafted(drafter, others, share, runner) if drafter is not None and others else {})


def _drafted(drafter: Drafter, due: list[Sequence], share: int, runner: Runner) -> dict[Sequence, Draft]:
    wanted = []
    for s in due:
        assert s.pace is not None
        wanted.append((s, min(s.pace.width, share, s.request.limit - s.made - 1)))
    out = {}
    for (s, _), tokens in zip(wanted, drafter.guess(wanted), strict=True):
        assert s.pace is not None
        if tokens and runner.reserve(s, len(tokens) + 1):
            out[s] = Draft(s, tuple(tokens), s.pace)
        else:
            s.pace.judged(0, 0)
    return out
