"""Requests of callers, and sequences: their progress in the engine."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from llamagpu.engine.pace import Pace
from llamagpu.errors import LlamaGPUError
from llamagpu.kernels.step import Sampled, Settings
from llamagpu.model.cache import Pages
from llamagpu.model.step import Row

if TYPE_CHECKING:
    from llamagpu.text.guide import Guide

Reuse = Literal["exact", "any", "none"]


@dataclass(frozen=True)
class Token:
    """A new token; with logprobs, its log-probability by the raw logits and the likeliest (id, log-probability)."""

    id: int
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)


_NOT_FINITE = (
    "The model computed a NaN or an infinity: its weights are broken, or values exceed float16.",
    "Check the checkpoint, or use --dtype float32 and --kv-dtype float32.",
)


class NotFinite(LlamaGPUError):
    """The logits of a sequence, or the vector of a text, hold NaN or infinity."""

    @classmethod
    def after(cls, tokens: int) -> NotFinite:
        """The error for a sequence of this many tokens."""
        return cls(f"The logits are not finite after {tokens} tokens.", *_NOT_FINITE)

    @classmethod
    def of_text(cls, tokens: int) -> NotFinite:
        """The error for the vector of a text of this many tokens."""
        return cls(f"The vector of a text of {tokens} tokens is not finite.", *_NOT_FINITE)


Outcome = Token | NotFinite


@dataclass(frozen=True)
class Request:
    """A request for new tokens, or for logits.

    Attributes:
        prompt: token ids.
        limit: the most tokens to make, by max_tokens and the context.
        want_logits: give logits instead of new tokens.
        first: the first position whose logits are wanted.
        reuse: which pages that earlier sequences left in the cache may give the beginning of the prompt: ``exact`` ones
            (``PagedCache``), with which a result keeps the bits of a lone run, ``any``, or ``none``.
        guide: the beginning of the grammar that the new tokens follow.
    """

    prompt: tuple[int, ...]
    limit: int
    settings: Settings = field(default_factory=Settings)
    stop_ids: frozenset[int] = frozenset()
    bias: Mapping[int, float] = field(default_factory=dict)
    want_logits: bool = False
    first: int = 0
    reuse: Reuse = "none"
    guide: Guide | None = None

    @property
    def most(self) -> int:
        """The most positions that the sequence can take; its last token needs none."""
        return len(self.prompt) + (0 if self.want_logits else self.limit - 1)


class Events(queue.SimpleQueue[Any]):
    """The events of a sequence.

    Attributes:
        listener: called after each event by the thread that puts it, which must not wait.
        cached: tokens that came from the cache when the sequence began; None before that. Set before the first event.
        ended: whether the last event was put.
    """

    listener: Callable[[], None] | None = None
    cached: int | None = None
    ended = False

    def put(self, event: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add an event; it never waits."""
        super().put(event)
        self.ended = not isinstance(event, Token)
        if self.listener is not None:
            self.listener()


@dataclass(eq=False)
class Sequence:
    """A request in progress: its tokens, and the pages that hold their keys and values. It begins with the prompt and
    ``earlier`` tokens that were made for it elsewhere.

    A sequence that lost its pages can go on from its tokens: begun again with length 0, its prompt is prefilled, and
    the tokens that it made are replayed, all but the newest.

    ``events`` carries Tokens, then a str (the finish reason), an array (logits) or an exception.
    """

    request: Request
    events: Events = field(default_factory=Events)
    cancelled: threading.Event = field(default_factory=threading.Event)
    earlier: Iterable[int] = ()
    tokens: list[int] = field(default_factory=list)  # the prompt's, and the new ones
    pages: Pages | None = None
    length: int = 0  # positions in the cache
    exact: int = 0  # the first of them whose keys and values are those of a prefill of these tokens alone
    in_flight: int = 0  # steps that were launched and not read yet
    counted: bool = False  # whether the device has the counts of its tokens
    pace: Pace | None = None  # of its drafts; set by an engine that speculates
    alone: bool = False  # whether its next step runs alone, because one in company failed
    number: int = field(default_factory=itertools.count().__next__)  # a larger one is younger
    logits: list[npt.NDArray[np.float32]] = field(default_factory=list)
    guide: Guide | None = None  # where the new tokens are in their grammar

    def __post_init__(self) -> None:
        self.tokens = [*self.request.prompt, *self.earlier]
        if self.request.guide is not None:
            self.guide = self.request.guide.copy()
            for token in self.tokens[len(self.request.prompt) :]:
                self.guide.take(token)

    def take(self, token: int) -> str | LlamaGPUError | None:
        """Add a new token; returns the finish reason if it is the last one, or the error of its grammar."""
        self.tokens.append(token)
        if token in self.request.stop_ids:
            return "stop"
        try:
            if self.guide is not None:
                self.guide.take(token)
                if self.guide.ended:
                    return "stop"
        except LlamaGPUError as e:
            return e
        return "length" if self.made >= self.request.limit else None

    def outcome(self, result: Sampled) -> Outcome:
        """A sampled token of the sequence as an event."""
        if not result.finite:
            return NotFinite.after(self.length)
        return Token(result.id, result.logprob if self.request.settings.logprobs else None, list(result.likely))

    def restart(self) -> None:
        """Begin again from its tokens, without pages."""
        self.pages, self.length, self.in_flight = None, 0, 0
        self.logits.clear()

    @property
    def made(self) -> int:
        """New tokens."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def decodes_from(self) -> int:
        """Positions that must be in the cache before it decodes: the prompt, or all tokens but the newest."""
        return len(self.tokens) - bool(self.made)

    @property
    def prefill_end(self) -> int:
        """Positions that prefill passes compute: the prompt's."""
        return len(self.request.prompt)

    @property
    def replays(self) -> bool:
        """Whether tokens that it made before must be replayed next."""
        return self.prefill_end <= self.length < self.decodes_from

    @property
    def prefilled(self) -> bool:
        """Whether the cache holds all that decoding needs."""
        return self.length >= self.decodes_from

    @property
    def slot(self) -> int:
        """The sequence's row of the page table."""
        assert self.pages is not None
        return self.pages.slot

    def row(self) -> Row:
        """The sequence in a decode step: its newest token, which is not in the cache yet."""
        return self.row_at(self.length)

    def row_at(self, position: int) -> Row:
        """The sequence in a step that continues after ``position``."""
        request = self.request
        last = len(request.prompt) + request.limit - 1
        return Row(self.tokens[position], position, self.slot, request.settings, last, tuple(request.stop_ids))


@dataclass(frozen=True)
class Draft:
    """What a step verifies for a sequence: guesses of its next tokens, and the pace of the drafter that made them."""

    sequence: Sequence
    tokens: tuple[int, ...] = ()
    pace: Pace | None = None

    def agreed(self, results: list[Outcome]) -> list[Outcome]:
        """The results of the rows up to the first one that had a wrong token before it."""
        for i, (result, guess) in enumerate(zip(results, self.tokens, strict=False)):
            if not isinstance(result, Token) or result.id != guess:
                return results[: i + 1]
        return results


def guided(batch: Iterable[Sequence]) -> bool:
    """Whether a sequence follows a grammar, so that a step of the batch needs masks."""
    return any(s.guide is not None for s in batch)
