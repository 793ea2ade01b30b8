"""The tokenizer in GGUF metadata, as the text of a tokenizer.json and the keys of a tokenizer_config.json."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gguf.constants import TokenType

from llamagpu.errors import UnsupportedModelError, shown
from llamagpu.model.sources.gguf.pretokenizers import PRETOKENIZERS, Pretokenizer, split_steps

log = logging.getLogger("llamagpu")
_MOST_LENGTH = 256  # characters of a token that merges are made for; the time grows with the square
_SPACE = "\u2581"  # what SentencePiece writes for a space
_ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
# Tokens that end a text or an answer, if a file marks them as control tokens (llama.cpp stops at them too).
_ENDS = frozenset(
    (
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>"),
        *("<|end_of_text|>", "<eos>", "</s>", "[|endofturn|]"),
    )
)


class Vocabulary:
    """The values under ``tokenizer.ggml.``, checked.

    Raises:
        UnsupportedModelError: a value is missing or wrong, or the kind of tokenizer is not supported; it is named.
    """

    def __init__(self, fields: Mapping[str, Any]):
        self._fields = fields
        self.kind = self._get("model")
        if self.kind not in ("llama", "gpt2"):
            raise _bad("model", self.kind, "supported are llama (SentencePiece) and gpt2 (byte-level BPE)")
        self.tokens: list[str] = self._strings("tokens")
        self.types = self._types()
        self.bos, self.eos = self._id("bos_token_id"), self._id("eos_token_id")
        self._sentencepiece = self.kind == "llama"
        self._pre = None if self._sentencepiece else self._pretokenizer()
        self.add_bos = self._flag("add_bos_token", self._sentencepiece or (self._pre is not None and self._pre.bos))
        self.add_eos = self._flag("add_eos_token", False)

    def ids(self) -> dict[str, Any]:
        """``bos_token_id`` and ``eos_token_id`` of config.json; the latter lists every token that ends an answer."""
        given = [i for i in (self.eos, self._id("eot_token_id"), self._id("eom_token_id")) if i is not None]
        control = np.flatnonzero(self.types == TokenType.CONTROL)
        ends = given + [int(i) for i in control if self.tokens[i] in _ENDS]
        return {"bos_token_id": self.bos, "eos_token_id": list(dict.fromkeys(ends))}

    def tokenizer_config(self) -> dict[str, Any]:
        """The keys of tokenizer_config.json."""
        named = {name: self._id(key) for name, key in _SPECIAL.items()}
        tokens = {name: self.tokens[i] for name, i in named.items() if i is not None}
        return tokens | {"add_bos_token": self.add_bos and self.bos is not None}

    def tokenizer_json(self) -> str:
        """The tokenizer in the format of the ``tokenizers`` library."""
        parts = self._spm() if self._pre is None else self._bpe(self._pre)
        empty = {"version": "1.0", "truncation": None, "padding": None}
        whole = empty | {"added_tokens": self._added(), "post_processor": self._post_processor()} | parts
        return json.dumps(whole, ensure_ascii=False)

    # --- the metadata -------------------------------------------------------------------

    def _get(self, key: str) -> Any:
        return self._fields.get(f"tokenizer.ggml.{key}")

    def _flag(self, key: str, default: bool) -> bool:
        value = self._get(key)
        if value is not None and not isinstance(value, bool):
            raise _bad(key, value, "it must be true or false")
        return default if value is None else value

    def _strings(self, key: str) -> list[str]:
        value = self._get(key)
        if not isinstance(value, list) or not value:
            raise _bad(key, value, "it must be a list of strings")
        return value

    def _id(self, key: str) -> int | None:
        value = self._get(key)
        if value is None or value == 0xFFFFFFFF or value == -1:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(self.tokens):
            raise _bad(key, value, f"there are {len(self.tokens)} tokens")
        return value

    def _types(self) -> Any:
        types = self._get("token_type")
        if types is None:
            return np.ones(len(self.tokens), np.int32)
        if not isinstance(types, np.ndarray) or len(types) != len(self.tokens):
            raise _bad("token_type", types, f"there are {len(self.tokens)} tokens")
        return types

    def _pretokenizer(self) -> Pretokenizer:
        name = self._get("pre")
        if name is None:
            log.warning(
                "the GGUF file does not name its pre-tokenizer; llama.cpp's default may split texts differently"
            )
            name = "default"
        if not isinstance(name, str) or name not in PRETOKENIZERS:
            raise _bad("pre", name, f"supported are {', '.join(PRETOKENIZERS)}")
        return PRETOKENIZERS[name]

    # --- the parts of tokenizer.json ----------------------------------------------------

    def _vocab(self) -> dict[str, int]:
        """Ids by token. Of tokens with the same text the first counts."""
        vocab: dict[str, int] = {}
        for i, token in enumerate(self.tokens):
            vocab.setdefault(token, i)
        if len(vocab) < len(self.tokens):
            log.warning("the vocabulary has %d tokens twice", len(self.tokens) - len(vocab))
        return vocab

    def _added(self) -> list[dict[str, Any]]:
        """Tokens that are found in a text before anything else. Control tokens are special."""
        # Phi-3's special tokens take the white space after them, which files do not say.
        strip = self._sentencepiece and self._fields.get("general.architecture") == "phi3"
        kept = ("<unk>", "<s>", "<|endoftext|>")
        flags = {"single_word": False, "lstrip": False, "normalized": False}
        return [
            flags
            | {"id": int(i), "content": token, "special": bool(self.types[i] != TokenType.USER_DEFINED)}
            | {"rstrip": strip and token not in kept}
            for i in np.flatnonzero(np.isin(self.types, _ADDED))
            if (token := self.tokens[i])
        ]

    def _post_processor(self) -> dict[str, Any] | None:
        """Adds BOS and EOS; byte-level BPE has nothing else to do after it."""
        ends = [(self.add_bos, self.bos), (self.add_eos, self.eos)]
        before, after = ([self.tokens[i]] if add and i is not None else [] for add, i in ends)
        if not before and not after:
            return None

        def sequence(name: str, kind: int) -> list[dict[str, Any]]:
            def special(tokens: list[str]) -> list[dict[str, Any]]:
                return [{"SpecialToken": {"id": token, "type_id": kind}} for token in tokens]

            return [*special(before), {"Sequence": {"id": name, "type_id": kind}}, *special(after)]

        ids = {token: {"id": token, "ids": [self.tokens.index(token)], "tokens": [token]} for token in before + after}
        pair = sequence("A", 0) + sequence("B", 1)
        return {"type": "TemplateProcessing", "single": sequence("A", 0), "pair": pair, "special_tokens": ids}

    def _bpe(self, pre: Pretokenizer) -> dict[str, Any]:
        merges = [_pair(m) for m in self._strings("merges")]
        vocab = self._vocab()
        for left, right in merges:
            if left not in vocab or right not in vocab or left + right not in vocab:
                raise _bad("merges", f"{left} {right}", "its tokens are not in the vocabulary")
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        return {
            "normalizer": {"type": "NFC"} if pre.nfc else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": split_steps(pre)},
            "decoder": byte_level,
            "model": _BPE | {"ignore_merges": pre.ignore_merges, "vocab": vocab, "merges": merges},
        }

    def _spm(self) -> dict[str, Any]:
        vocab = self._vocab()
        unknown = self._id("unknown_token_id")
        prefix = self._flag("add_space_prefix", True)
        replace: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
        normalizers: list[dict[str, Any]] = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
        decoders: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        if prefix:
            decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        model = {"unk_token": None if unknown is None else self.tokens[unknown], "fuse_unk": True}
        return {
            "normalizer": {"type": "Sequence", "normalizers": normalizers + replace},
            "pre_tokenizer": None,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": _BPE | model | {"byte_fallback": True, "vocab": vocab, "merges": self._merges(vocab)},
        }

    def _merges(self, vocab: dict[str, int]) -> list[tuple[str, str]]:
        """The merges of a SentencePiece vocabulary: every split of a token in two tokens, the best token first."""
        scores = self._get("scores")
        if not isinstance(scores, np.ndarray) or len(scores) != len(self.tokens):
            raise _bad("scores", scores, f"there are {len(self.tokens)} tokens")
        if max(map(len, vocab)) > _MOST_LENGTH:
            raise _bad("tokens", max(vocab, key=len), f"a token has more than {_MOST_LENGTH} characters")
        found = list(self._splits(vocab, scores.tolist()))
        found.sort(key=lambda split: split[:3])
        return [(left, right) for *_, left, right in found]

    def _splits(self, vocab: dict[str, int], scores: list[float]) -> Iterator[tuple[float, int, int, str, str]]:
        """(minus the score, ids of the parts, the parts) of every split of a normal token."""
        for i in np.flatnonzero(self.types == TokenType.NORMAL):
            token = self.tokens[i]
            for at in range(1, len(token)):
                left, right = token[:at], token[at:]
                if left in vocab and right in vocab:
                    yield -scores[i], vocab[left], vocab[right], left, right


_BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _bad(key: str, value: Any, why: str) -> UnsupportedModelError:
    stated = "lacks" if value is None else f"sets {shown(value)} for"
    return UnsupportedModelError(
        f"The GGUF file {stated} tokenizer.ggml.{key}: {why}.", "Text cannot be tokenized.", "Choose another model."
    )
