"""A vocabulary as bytes, for grammars: what each token adds to a text, and which characters it can spell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.errors import UsageError
from llamagpu.text.grammar import library
from llamagpu.text.tokenizer import Tokenizer

Mask = npt.NDArray[np.uint32]
_ANCHOR = "\n"
_SAMPLE = 100  # tokens whose text is compared with their bytes


class Spelling:
    """The bytes of a vocabulary's tokens, as llguidance takes them.

    Special tokens have none, because they are not part of the text. An id behind the last stands for the end: the
    library needs one, and ours are added to its masks, so that requests may have their own.

    Raises:
        UsageError: the tokenizer's text is not the bytes of its tokens, or llguidance is missing.

    Attributes:
        tokenizer: llguidance's view of the vocabulary.
        dropped: the mask of tokens that lose their first space where they begin a text.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        size = max(tokenizer.vocab.values(), default=-1) + 1
        self._words = -(-vocab_size // 32)
        self._encode = tokenizer.encode
        self._bytes = [b"" if i in tokenizer.special_ids else tokenizer.token_bytes(i) for i in range(size)]
        self._whole = set(self._bytes)
        self._check(tokenizer)
        spaced = [i for i, text in enumerate(self._bytes) if text.startswith(b" ")]
        drops = bool(spaced) and not tokenizer.decode(spaced[:1], skip_special=False).startswith(" ")
        self._dropped = frozenset(spaced) if drops else frozenset()
        self.dropped = self.bits(self._dropped)
        self._filled = size // 32 + 1  # words that the library writes
        self.tokenizer = library().LLTokenizer(_Wrapper([*self._bytes, b""], self._ids))

    def _check(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer whose text is more than the bytes of its tokens: with spaces between words, say."""
        ids = [i for i, text in enumerate(self._bytes) if text]
        ids = ids[:: max(1, len(ids) // _SAMPLE)]
        for first, *rest in zip(ids, ids[1:], ids[2:], strict=False):
            begin, whole = (tokenizer.decode(part, skip_special=False) for part in ([first], [first, *rest]))
            text = self._text(rest).decode(errors="replace")
            if "\ufffd" not in whole + text and whole[len(begin) :] != text:
                why = "Its decoder changes the text of tokens by what stands beside them."
                raise UsageError("The model's tokenizer does not work with structured output.", why)

    def missing(self, text: str) -> list[str]:
        """The characters of a text that the vocabulary cannot spell by themselves."""
        return sorted(c for c in set(text) if not self._spells(c.encode()))

    def _spells(self, text: bytes) -> bool:
        return text in self._whole or all(bytes([b]) in self._whole for b in text)

    def bits(self, ids: Iterable[int]) -> Mask:
        """The mask of these tokens."""
        out = np.zeros(self._words, np.uint32)
        for i in ids:
            out[i // 32] |= np.uint32(1 << (i % 32))
        return out

    def drops(self, token: int) -> bool:
        """Whether a token loses its space where it begins a text."""
        return token in self._dropped

    def mask(self, matcher: Any) -> Mask:
        """The mask of the next tokens, without the end; empty where nothing can follow."""
        out = np.zeros(max(self._words, self._filled), np.uint32)
        if matcher.is_stopped():
            return out[: self._words]
        matcher.unsafe_compute_mask_ptr(out.ctypes.data, 4 * self._filled)
        end = len(self._bytes)
        out[end // 32] &= np.uint32(~(1 << (end % 32)) & 0xFFFFFFFF)
        return out[: self._words]

    def _ids(self, text: bytes) -> list[int]:
        """The ids that a model would most likely write for a text in progress."""
        try:
            whole = text.decode()
        except UnicodeDecodeError:
            return list(self.tokenizer.greedy_tokenize(text.decode(errors="replace")))
        ids = self._encode(whole, special=False)
        if self._text(ids) == text:
            return ids
        # Some tokenizers put a space before a text: a line break in front takes it away.
        anchored = self._encode(_ANCHOR + whole, special=False)
        for begin in range(1, 4):
            if self._text(anchored[begin:]) == text:
                return anchored[begin:]
        return list(self.tokenizer.greedy_tokenize(whole))

    def _text(self, ids: Iterable[int]) -> bytes:
        return b"".join(self._bytes[i] for i in ids)


class _Wrapper:
    """What llguidance's LLTokenizer reads (llguidance._tokenizer.TokenizerWrapper)."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], encode: Any):
        self.tokens, self._encode = tokens, encode
        self.eos_token_id = len(tokens) - 1
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: bytes | str) -> list[int]:
        ids: list[int] = self._encode(text if isinstance(text, bytes) else text.encode())
        return ids
