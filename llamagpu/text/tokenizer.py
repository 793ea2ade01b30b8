"""A model's tokenizer: text to ids and back, and the ids of special tokens."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import tokenizers

from llamagpu.errors import LlamaGPUError, UnsupportedModelError, UsageError, shown
from llamagpu.text.marks import Rendered
from llamagpu.text.sentencepiece import converted
from llamagpu.text.shield import NONCHARACTER, Shield
from llamagpu.text.template import token_text

_LONG = 4096  # characters, above which a text is encoded as a batch, which lets other threads run
_FAILS = "The model's tokenizer fails."
_PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
_OTHERS = [b for b in range(256) if b not in _PRINTABLE]
# The characters that stand for bytes in the vocabularies of GPT-2 and its like (byte-level BPE).
_BYTES = {chr(b): b for b in _PRINTABLE} | {chr(256 + i): b for i, b in enumerate(_OTHERS)}


@contextmanager
def _guarded(what: str) -> Iterator[None]:
    """Turn what the library raises into our error: bare Exceptions, and the PanicException of its Rust code, which is
    no Exception. An interrupt passes."""
    try:
        yield
    except LlamaGPUError:
        raise
    except BaseException as e:
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        raise UnsupportedModelError(what, str(e), "Download the file again, or choose another model.") from None


class Tokenizer:
    """A model's tokenizer.

    Args:
        source: the text of tokenizer.json, or the bytes of a SentencePiece model (tokenizer.model).
        config: the keys of tokenizer_config.json.
        vocab_size: the model's.
        name: what errors call the tokenizer.

    Raises:
        UnsupportedModelError: it cannot be read or converted, or has ids that the model lacks.
    """

    def __init__(self, source: str | bytes, config: Mapping[str, Any], vocab_size: int, name: str = "tokenizer.json"):
        with _guarded(f"{name} cannot be read."):
            self._read(converted(source, config) if isinstance(source, bytes) else source, config, vocab_size, name)
        self._lock = threading.Lock()
        self._cutters: dict[int, Any] = {}

    def _read(self, text: str, config: Mapping[str, Any], vocab_size: int, name: str) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_str(text)
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
        self._added = {i: token.content for i, token in added.items()}
        self._byte_level = "ByteLevel" in str(self._tokenizer.decoder)
        special = {i: token.content for i, token in added.items() if token.special}
        self.special_ids, self.special_texts = frozenset(special), frozenset(special.values())
        self._bytes = {vocab[name]: b for b in range(256) if (name := f"<0x{b:02X}>") in vocab}
        self._bos, self._prepends = self._find_bos(config, vocab)
        unknown = (part.id for part in self._tokenizer.model.tokenize(NONCHARACTER))
        self._unknown = {i: special[i] for i in unknown if i in special}

    def _find_bos(self, config: Mapping[str, Any], vocab: Mapping[str, int]) -> tuple[int | None, bool]:
        """The id that begins every text, if any, and whether only tokenizer_config.json asks for it, so that it is
        added here."""
        plain, whole = (self._tokenizer.encode("a", add_special_tokens=s).ids[:1] for s in (False, True))
        if whole != plain and whole:
            return whole[0], False
        bos = vocab.get(token_text(config.get("bos_token")) or "")
        return (bos, True) if config.get("add_bos_token") is True and bos is not None else (None, False)

    @property
    def vocab(self) -> dict[str, int]:
        """Ids by token, added tokens included."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def special_id(self, text: str) -> int | None:
        """The id of a special token; None if there is no such special token."""
        id: int | None = self._tokenizer.token_to_id(text)
        return id if id in self.special_ids else None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text. Special tokens in it are recognised.

        With ``special``, ids include BOS and other special tokens that the tokenizer adds. A text that begins with BOS
        gets no second one.

        Raises:
            UsageError: it is not text.
        """
        ids: list[int] = self._encode(text, special).ids
        if not special or self._bos is None:
            return ids
        if self._prepends and ids[:1] != [self._bos]:
            return [self._bos, *ids]
        return ids[1:] if ids[:2] == [self._bos] * 2 and not self._prepends else ids

    def encode_pairs(self, texts: Sequence[str | tuple[str, str]], most: int) -> list[tuple[list[int], list[int], int]]:
        """Ids, token types and the number of tokens cut off, for texts or pairs of texts with their special tokens.

        Args:
            most: the most tokens; longer texts are cut at the end, and of a pair the longer one first.

        Raises:
            UsageError: an item is not text.
        """
        with _guarded(_FAILS):
            try:
                whole = self._tokenizer.encode_batch(list(texts))
            except TypeError:
                raise UsageError("An item is not text.", "It must be a string of whole Unicode characters.") from None
        found = []
        for text, encoding in zip(texts, whole, strict=True):
            cut = max(0, len(encoding.ids) - most)
            if cut:
                encoding = self._cutting(most).encode(*(text if isinstance(text, tuple) else (text,)))
            found.append((encoding.ids, encoding.type_ids, cut))
        return found

    def _cutting(self, most: int) -> Any:
        """A copy of the tokenizer that cuts texts."""
        with self._lock:
            if most not in self._cutters:
                copy = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
                copy.enable_truncation(most)
                self._cutters[most] = copy
            return self._cutters[most]

    def encode_chat(self, rendered: Rendered) -> list[int]:
        """Ids of a rendered conversation. The template alone adds BOS, and special tokens are recognised only in its
        own text: the conversation's are ordinary text.

        Raises:
            UsageError: it is not text.
        """
        encoding = self._encode(rendered.text, False)
        ids: list[int] = encoding.ids
        special = [(i, *span) for i, span in zip(ids, encoding.offsets, strict=True) if i in self.special_ids]
        # The unknown token is special too, and stands for any text that the vocabulary lacks.
        special = [p for p in special if p[0] not in self._unknown or self._unknown[p[0]] in rendered.text[p[1] : p[2]]]
        meant = [place for place in special if not rendered.is_given(*place[1:])]
        if len(meant) == len(special):
            return ids
        with _guarded(_FAILS):
            with self._lock:  # several threads may be here first
                shield = self._shield
            return shield.encode(rendered.text, meant)

    @cached_property
    def _shield(self) -> Shield:
        return Shield(self._tokenizer, self._unknown)

    def _encode(self, text: str, special: bool) -> Any:
        with _guarded(_FAILS):
            try:
                if len(text) < _LONG:
                    return self._tokenizer.encode(text, add_special_tokens=special)
                return self._tokenizer.encode_batch([text], add_special_tokens=special)[0]
            except TypeError:  # not a string, or one with lone surrogates
                why = "It must be a string of whole Unicode characters."
                raise UsageError(f"{shown(text)} is not text.", why) from None

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of ids. Bytes that are not UTF-8 become U+FFFD."""
        kept = [i for i in ids if not (skip_special and i in self.special_ids)]
        cut = self._unfinished_bytes(kept)
        with _guarded(_FAILS):
            text: str = self._tokenizer.decode(kept[: len(kept) - cut], skip_special_tokens=False)
        return text + "\ufffd" if cut else text

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token adds to a text in progress; none if the tokenizer has no such id."""
        name = self._tokenizer.id_to_token(id)
        if name is None or id in self._bytes:
            return bytes([self._bytes[id]]) if id in self._bytes else b""
        if id in self._added:
            return self._added[id].encode()
        if self._byte_level and all(c in _BYTES for c in name):
            return bytes(_BYTES[c] for c in name)
        with _guarded(_FAILS):
            # Decoders treat a text's first token differently: they drop its leading space.
            once, twice = (self._tokenizer.decode([id] * n, skip_special_tokens=False) for n in (1, 2))
        return str(twice)[len(once) :].encode()

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
