"""SentencePiece models (tokenizer.model), converted to the format of the ``tokenizers`` library.

The file is a protocol buffer, ``ModelProto`` in sentencepiece's ``src/sentencepiece_model.proto``; the few fields read
here are its pieces, the kind of model, and the normalizer. The conversion is that of transformers 5
(``models/llama/tokenization_llama.py``, ``models/gemma/tokenization_gemma.py``, ``generate_merges``), and for Unigram
models that of ``SpmConverter`` in ``convert_slow_tokenizer.py``.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamagpu.errors import UnsupportedModelError

_SPACE = "▁"
_ID = re.compile("[0-9]{1,9}")
_MOST_PIECES = 2_000_000  # the largest vocabularies have 260,000
_MOST_LENGTH = 256  # characters of a piece; the time that merges take grows with the square
_UNIGRAM, _BPE = 1, 2  # kinds of models
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # types of pieces
_REMEDY = "Make a tokenizer.json with transformers (AutoTokenizer.from_pretrained, then save_pretrained)."


@dataclass(frozen=True)
class SentencePiece:
    """The parts of a model: its pieces as (text, score, type), its kind, the unknown piece's id, the normalizer."""

    pieces: list[tuple[str, float, int]]
    kind: int
    unknown: int
    characters: bytes  # the normalizer's map, compiled; empty for none
    prefix: bool  # a space goes before the text
    trims: bool  # runs of spaces become one


def converted(model: bytes, config: Mapping[str, Any]) -> str:
    """The text of tokenizer.json for a SentencePiece model.

    Args:
        config: the keys of tokenizer_config.json: the class, ``legacy``, ``add_prefix_space``, ``add_bos_token``, the
            special tokens and ``added_tokens_decoder``.

    Raises:
        UnsupportedModelError: it is not such a model, or of a kind that cannot be converted.
    """
    read = _read(model)
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    if read.kind == _UNIGRAM:
        parts = _unigram(read)
    elif read.kind == _BPE:
        parts = _gemma(read) if kind == "GemmaTokenizer" else _llama(read, config)
    else:
        raise UnsupportedModelError(
            "tokenizer.model is neither a BPE nor a Unigram model.", "Models of words and characters are rare.", _REMEDY
        )
    tokens = _added(read, config)
    parts |= {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens}
    parts["post_processor"] = _post_processor(config, {t["content"]: t["id"] for t in tokens})
    return json.dumps(parts)


# --- models --------------------------------------------------------------------------------


def _llama(read: SentencePiece, config: Mapping[str, Any]) -> dict[str, Any]:
    """BPE with byte fallback. The first text (``legacy``: every text after a special token) begins with a space."""
    given = config.get("add_prefix_space")
    prefix = given if isinstance(given, bool) else read.prefix
    scheme = ("always" if config.get("legacy") else "first") if prefix else "never"
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": _precompiled(read),
        "pre_tokenizer": {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": False},
        "decoder": {"type": "Sequence", "decoders": [*_DECODERS, *strip]},
        "model": _bpe(read),
    }


def _gemma(read: SentencePiece) -> dict[str, Any]:
    """BPE with byte fallback, without a space before the text."""
    return {
        "normalizer": _REPLACE_SPACES,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "decoder": {"type": "Sequence", "decoders": _DECODERS},
        "model": _bpe(read),
    }


def _unigram(read: SentencePiece) -> dict[str, Any]:
    """The likeliest split into pieces."""
    trims = [
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    ]
    steps = [s for s in (_precompiled(read), *(trims if read.trims else ())) if s]
    scheme = "always" if read.prefix else "never"
    space = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": True}
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": space,
        "decoder": space,
        "model": {
            "type": "Unigram",
            "unk_id": read.unknown,
            "vocab": [[piece, score] for piece, score, _ in read.pieces],
            "byte_fallback": any(kind == _BYTE for _, _, kind in read.pieces),
        },
    }


_REPLACE_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_DECODERS = [
    {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]


def _precompiled(read: SentencePiece) -> dict[str, Any] | None:
    if not read.characters:
        return None
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(read.characters).decode()}


def _bpe(read: SentencePiece) -> dict[str, Any]:
    vocab = {piece: i for i, (piece, _, _) in enumerate(read.pieces)}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": read.pieces[read.unknown][0],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": _merges(vocab),
    }


def _merges(vocab: Mapping[str, int]) -> list[list[str]]:
    """Every way to join two pieces to a third one: by the rank of the third, then by the lengths of the two."""
    found = []
    for piece, rank in vocab.items():
        halves = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        pairs = [(a, b) for a, b in halves if a in vocab and b in vocab]
        pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        found += [(rank, len(a), len(b), a, b) for a, b in pairs]
    found.sort(key=lambda merge: merge[:3])
    return [[a, b] for *_, a, b in found]


# --- special tokens ------------------------------------------------------------------------


def _added(read: SentencePiece, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Control and user-defined pieces, and the tokens that the config adds."""
    tokens = {
        i: _token(i, piece, special=of != _USER_DEFINED)
        for i, (piece, _, of) in enumerate(read.pieces)
        if of in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    }
    given = config.get("added_tokens_decoder")
    for id, token in (given if isinstance(given, dict) else {}).items():
        if not (_ID.fullmatch(str(id)) and isinstance(token, dict) and isinstance(token.get("content"), str)):
            raise _bad_token(str(id), "It is not a token.")
        flags = {
            k: bool(v) for k, v in token.items() if k in ("lstrip", "rstrip", "single_word", "normalized", "special")
        }
        tokens[int(id)] = _token(int(id), token["content"]) | flags
    pieces = len(read.pieces)
    for position, id in enumerate(sorted(i for i in tokens if i >= pieces)):
        if id != pieces + position:  # the library would give it another id
            raise _bad_token(str(id), f"Its id must be {pieces + position}, the next one after the model's pieces.")
    renamed = next((i for i in tokens if i < pieces and tokens[i]["content"] != read.pieces[i][0]), None)
    if renamed is not None:
        raise _bad_token(str(renamed), f"tokenizer.model has the piece {read.pieces[renamed][0]!r:.40} there.")
    return [tokens[i] for i in sorted(tokens)]


def _bad_token(id: str, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The added token {id:.40} of tokenizer_config.json or added_tokens.json cannot be added.", why, _REMEDY
    )


def _token(id: int, content: str, special: bool = False) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": content, **flags, "special": special}


def _post_processor(config: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, Any] | None:
    """BOS before a text and EOS after it, if the config says so."""
    parts: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    used = {}
    for name, default in (("bos", "<s>"), ("eos", "</s>")):
        token = config.get(f"{name}_token") or default
        text = str(token.get("content") if isinstance(token, dict) else token)
        if config.get(f"add_{name}_token") is True and text in ids:
            used[text] = {"id": text, "ids": [ids[text]], "tokens": [text]}
            part = {"SpecialToken": {"id": text, "type_id": 0}}
            parts = [part, *parts] if name == "bos" else [*parts, part]
    if not used:
        return None
    pair = [*parts, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": parts, "pair": pair, "special_tokens": used}


# --- the file ------------------------------------------------------------------------------


def _read(model: bytes) -> SentencePiece:
    try:
        fields = list(_fields(model))
        pieces = [_piece(value) for number, value in fields if number == 1]
        trainer = dict(_fields(_last(fields, 2)))
        normalizer = dict(_fields(_last(fields, 3)))
        read = SentencePiece(
            pieces,
            int(trainer.get(3, _UNIGRAM)),
            int(trainer.get(40, 0)),
            bytes(normalizer.get(2, b"")),
            bool(normalizer.get(3, 1)),
            bool(normalizer.get(4, 1)),
        )
        if not 0 <= read.unknown < len(pieces):
            raise ValueError("it has no pieces")
        if len(pieces) > _MOST_PIECES or any(len(piece) > _MOST_LENGTH for piece, _, _ in pieces):
            raise ValueError(f"it has more than {_MOST_PIECES:,} pieces, or one of over {_MOST_LENGTH} characters")
    except (ValueError, TypeError, struct.error) as e:
        raise UnsupportedModelError(
            "tokenizer.model is not a SentencePiece model.", f"{e}; it may be broken, or in tiktoken's format.", _REMEDY
        ) from None
    return read


def _piece(data: bytes | int) -> tuple[str, float, int]:
    fields = dict(_fields(bytes(data) if isinstance(data, bytes) else b""))
    (score,) = struct.unpack("<f", fields.get(2, b"\0\0\0\0"))
    return bytes(fields[1]).decode() if 1 in fields else "", score, int(fields.get(3, 1))


def _last(fields: Sequence[tuple[int, bytes | int]], number: int) -> bytes:
    found = [value for n, value in fields if n == number and isinstance(value, bytes)]
    return found[-1] if found else b""


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message as (number, value): an int, or bytes (strings, messages, and numbers of fixed width).

    The format: https://protobuf.dev/programming-guides/encoding
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        else:
            length = {1: 8, 5: 4}.get(wire, -1)
        if length < 0 or at + length > len(data) or number == 0:
            raise ValueError(f"byte {at} cannot be read")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError(f"byte {at} cannot be read")
