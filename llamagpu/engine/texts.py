"""Texts on their way through a model that gives a pooled vector for each."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from llamagpu.errors import UsageError, shown
from llamagpu.model.packs import Encoded, Floats
from llamagpu.text import Tokenizer

_AHEAD = 2  # packs whose texts are queued before the oldest batch is read


class Packs(Protocol):
    """What runs texts in packs: an ``EncoderEngine``, here or in another process."""

    @property
    def rows(self) -> int:
        """Tokens of the largest pack."""

    def submit(self, texts: Sequence[Encoded], modes: tuple[str, ...]) -> Future[Floats]:
        """Queue texts; their pooled vectors, float32 [texts, hidden of every mode]."""


class Texts:
    """Tokenizes texts and queues them on a model.

    Args:
        max_length: the most tokens of a text, special ones included.
        types: token types that the model knows; 0 if it has none.
    """

    def __init__(self, tokenizer: Tokenizer, engine: Packs, max_length: int, types: int = 0):
        self._tokenizer, self._engine, self.max_length, self._types = tokenizer, engine, max_length, types

    @property
    def ahead(self) -> int:
        """Tokens that keep the device busy while the next texts are tokenized."""
        return _AHEAD * self._engine.rows

    def tokenize(self, texts: Sequence[str | tuple[str, str]]) -> list[Encoded]:
        """Tokens of texts or of pairs of texts.

        Raises:
            UsageError: an item is not text, or has no token.
        """
        found = self._tokenizer.encode_pairs(texts, self.max_length)
        top = max(0, self._types - 1)
        encoded = [Encoded(tuple(ids), tuple(min(t, top) for t in types), cut) for ids, types, cut in found]
        for text, e in zip(texts, encoded, strict=True):
            if not e.ids:
                raise UsageError(f"The text {shown(text)} has no tokens.", "The tokenizer adds no special token.")
        return encoded

    def submit(self, texts: Sequence[str | tuple[str, str]], modes: tuple[str, ...]) -> Batch:
        """Tokenize texts and queue them.

        Raises:
            UsageError: an item is not text, or has no token.
            DeviceLostError: the model is closed.
        """
        encoded = self.tokenize(texts)
        return Batch(self._engine.submit(encoded, modes), encoded)


@dataclass(frozen=True)
class Batch:
    """Texts on their way through the model: their pooled vectors to come."""

    vectors: Future[Floats]
    texts: list[Encoded]

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(len(text.ids) for text in self.texts)
