"""Grammars over a model's vocabulary: which tokens may come next."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.errors import LlamaGPUError, UsageError, shown
from llamagpu.text.grammar import compiled
from llamagpu.text.shape import Shape
from llamagpu.text.spelling import Spelling
from llamagpu.text.tokenizer import Tokenizer

_KEPT = 64  # compiled grammars
_DEAD = "No token of the model continues the output."
Mask = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Outline:
    """What makes a guide again, in another process: the arguments of ``Guides.guide``."""

    shape: Shape
    stop_ids: frozenset[int]
    begins: bool


class Guides:
    """The grammars of one vocabulary. Threads may share it.

    Args:
        tokenizer: the model's.
        vocab_size: of the model's logits; may be larger than the tokenizer's.
        stop_ids: the ids that end the model's text.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Iterable[int]):
        self._tokenizer, self.vocab_size, self._stop_ids = tokenizer, vocab_size, frozenset(stop_ids)
        self._lock = threading.Lock()
        self._spelling: Spelling | None = None
        self._compiled: OrderedDict[Shape, Any] = OrderedDict()

    def guide(self, shape: Shape, stop_ids: frozenset[int] | None = None, *, begins: bool = False) -> Guide:
        """The beginning of an output. A shape is compiled once.

        Args:
            stop_ids: the ids that end the output where the shape allows its end; the model's by default.
            begins: the output begins a text: it is the first, or comes after a special token, so that some tokenizers
                drop a space that begins it.

        Raises:
            UsageError: the vocabulary cannot spell the shape, or the shape is too complex or impossible.
        """
        with self._lock:
            if self._spelling is None:
                self._spelling = Spelling(self._tokenizer, self.vocab_size)
            spelling = self._spelling
            matcher = self._compiled.get(shape)
            if matcher is not None:
                self._compiled.move_to_end(shape)
        if matcher is None:
            matcher = _begun(shape, spelling)
            with self._lock:
                self._compiled[shape] = matcher
                while len(self._compiled) > _KEPT:
                    self._compiled.popitem(last=False)
        stops = self._stop_ids if stop_ids is None else stop_ids
        guide = Guide(matcher.deep_copy(), spelling, Outline(shape, stops, begins))
        guide.check()
        return guide

    def again(self, outline: Outline) -> Guide:
        """The beginning of the output of a guide of another process."""
        return self.guide(outline.shape, outline.stop_ids, begins=outline.begins)


def _begun(shape: Shape, spelling: Spelling) -> Any:
    missing = spelling.missing("".join(shape.needs))
    if missing:
        raise UsageError(
            f"The model cannot write {shape.name}.",
            f"Its vocabulary lacks these characters: {' '.join(map(shown, missing))}.",
            "Choose another model, or leave them out.",
        )
    matcher = compiled(shape.grammar, spelling.tokenizer)
    if matcher.is_error():
        raise UsageError(f"{shape.name} cannot be used.", matcher.get_error())
    return matcher


class Guide:
    """The state of one output within its grammar. One thread at a time may use it."""

    def __init__(self, matcher: Any, spelling: Spelling, outline: Outline):
        self._matcher, self._spelling, self.outline = matcher, spelling, outline
        self._stop_ids, self._stops = outline.stop_ids, spelling.bits(outline.stop_ids)
        self._bare = outline.begins  # whether no space may begin the next token
        self._over = False  # whether a stop token was taken
        self._forced = self._ahead()

    def check(self) -> None:
        """Refuse an output that cannot begin.

        Raises:
            UsageError: no token begins it.
        """
        row = self._row(self._forced)
        if self._matcher.is_error() or not row.any():
            why = self._error() or "No token of the model's vocabulary begins it, or nothing satisfies it."
            raise UsageError(f"The model cannot write {self.outline.shape.name}.", why)

    def copy(self) -> Guide:
        """An independent guide in the same state."""
        other = copy(self)
        other._matcher, other._forced = self._matcher.deep_copy(), list(self._forced)
        return other

    def take(self, token: int) -> None:
        """Advance by a token.

        Raises:
            LlamaGPUError: the grammar does not allow it.
        """
        if self.complete and token in self._stop_ids:
            self._over = True
            return
        if self._over or token in self._stop_ids or not self._consumes(token):
            if self._error():
                raise LlamaGPUError("The output's grammar became too complex.", self._error(), "Simplify its shape.")
            raise LlamaGPUError(f"Token {token} does not fit the output's grammar.")
        self._bare = False
        if self._forced[:1] == [token]:
            del self._forced[0]
        else:
            self._forced = []
        self._forced = self._forced or self._ahead()

    def _consumes(self, token: int) -> bool:
        if self._bare and self._spelling.drops(token):
            return False
        return bool(self._matcher.try_consume_tokens([token]) == 1)

    @property
    def ended(self) -> bool:
        """Whether the output is complete and nothing can follow: it ends without a stop token."""
        return self._over or (self._matcher.is_stopped() and not self._matcher.is_error())

    @property
    def complete(self) -> bool:
        """Whether the output may end here."""
        return self._over or bool(self._matcher.is_accepting())

    def forced(self, most: int) -> list[int]:
        """The next tokens if there is only one way, at most ``most``. Masks allow nothing else in their places."""
        return self._forced[:most]

    def masks(self, out: Mask, guesses: Sequence[int]) -> int:
        """Write the masks of the next tokens.

        Args:
            out: uint32 [1 + len(guesses), ceil(vocab_size / 32)]. Row i becomes the mask after the first i guesses: bit
                t % 32 of word t // 32 is set if token t is allowed. No row that is written is empty: where the output
                ended and there are no stop ids, it has token 0, which nobody takes.

        Returns:
            How many of the guesses the grammar allows; rows beyond are not written.

        Raises:
            LlamaGPUError: no token continues the output, or the grammar became too complex.
        """
        forced, bare, taken = self._forced, self._bare, 0
        try:
            for i in range(len(guesses) + 1):
                row = self._row(forced)
                if not row.any():
                    if not i:
                        raise LlamaGPUError(_DEAD, self._error(), "Loosen the shape of the output.")
                    return i - 1
                out[i] = row
                if i == len(guesses) or not _allows(row, guesses[i]) or guesses[i] in self._stop_ids:
                    return i
                if self._matcher.try_consume_tokens([guesses[i]]) != 1:
                    return i
                taken, self._bare = taken + 1, False
                forced = forced[1:] or self._ahead()
            return len(guesses)
        finally:
            self._bare = bare
            if taken:
                self._matcher.rollback(taken)

    def _row(self, forced: list[int]) -> Mask:
        """The mask of the matcher's state: a forced token alone, or all that the grammar allows."""
        if self.ended:
            return self._stops if self._stop_ids else self._spelling.bits([0])
        if forced:
            return self._spelling.bits(forced[:1])
        row = self._spelling.mask(self._matcher) & ~self._stops
        if self._bare:
            row &= ~self._spelling.dropped
        return row | self._stops if self.complete else row

    def _ahead(self) -> list[int]:
        """The next tokens if there is only one way: they are allowed whatever the model's logits."""
        if self.complete or self._matcher.is_stopped():
            return []
        tokens: list[int] = self._matcher.compute_ff_tokens()
        tokens = tokens[: self._matcher.validate_tokens(tokens)]
        banned = (
            i for i, t in enumerate(tokens) if t in self._stop_ids or (not i and self._bare and self._spelling.drops(t))
        )
        return tokens[: next(banned, len(tokens))]

    def _error(self) -> str:
        """What the library says, if it says more than that nothing fits."""
        text = str(self._matcher.get_error()) if self._matcher.is_error() else ""
        return "" if text.startswith("NoExtension") else text.removesuffix("<non-verbose/>").strip()


def _allows(row: Mask, token: int) -> bool:
    return 0 <= token < 32 * len(row) and bool(row[token // 32] >> np.uint32(token % 32) & np.uint32(1))
