"""A model's tokenizer: text to ids and back, and the ids of special tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from llamagpu.errors import UnsupportedModelError, UsageError, shown


class Tokenizer:
    """A tokenizer from the text of tokenizer.json, and from the keys of tokenizer_config.json."""

    def __init__(self, source: str, config: Mapping[str, Any], vocab_size: int, name: str = "tokenizer.json"):
        """Read and check the tokenizer; errors call it ``name``.

        Raises:
            UnsupportedModelError: it cannot be read, or has ids that the model lacks.
        """
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(source)
        except Exception as e:  # the library raises bare Exception
            raise UnsupportedModelError(f"{name} cannot be read.", str(e), "Download the file again.") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        self.longest = max(map(len, vocab), default=1)  # characters of the longest token
        largest = max(vocab.values(), default=-1)
        if largest >= vocab_size:
            raise UnsupportedModelError(
                f"The tokenizer has ids up to {largest}, the model only {vocab_size} tokens.",
                f"{name} does not belong to these weights.",
                "Download the model again.",
            )
        # Some checkpoints mark special tokens as `normalized`; then the library's skip_special_tokens drops none.
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._bytes = {vocab[name]: b for b in range(256) if (name := f"<0x{b:02X}>") in vocab}
        self.bos_id = self._bos(config, vocab)

    def _bos(self, config: Mapping[str, Any], vocab: dict[str, int]) -> int | None:
        """The BOS id to prepend if tokenizer_config.json asks for it and tokenizer.json does not add it."""
        token = config.get("bos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if config.get("add_bos_token") is not True or not isinstance(token, str) or token not in vocab:
            return None
        does_it = vocab[token] in self._tokenizer.encode("a").ids
        return None if does_it else vocab[token]

    @property
    def vocab(self) -> dict[str, int]:
        """Ids by token, added tokens included."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text; with ``special``, including BOS and other special tokens that the tokenizer adds."""
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        except TypeError:  # not a string, or one with lone surrogates
            raise UsageError(
                f"{shown(text)} is not text.", "It must be a string of whole Unicode characters."
            ) from None
        if special and self.bos_id is not None:
            ids = [self.bos_id, *ids]
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of ids. Bytes that are not UTF-8 become U+FFFD."""
        kept = [i for i in ids if not (skip_special and i in self.special_ids)]
        cut = self._unfinished_bytes(kept)
        text: str = self._tokenizer.decode(kept[: len(kept) - cut], skip_special_tokens=False)
        return text + "\ufffd" if cut else text

    def _unfinished_bytes(self, ids: Sequence[int]) -> int:
        """The number of byte tokens at the end that begin an unfinished UTF-8 character.

        They are decoded apart: if a run of bytes as a whole is not UTF-8, the library turns every byte of it into
        U+FFFD, also those of finished characters.
        """
        for back in range(1, min(3, len(ids)) + 1):
            byte = self._bytes.get(ids[-back])
            if byte is None or byte < 0x80:
                return 0
            if byte >= 0xC0:  # the first byte of a character of 2, 3 or 4
                return back if back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else 0
        return 0
