"""Tokenizers for the browser: tokenizer.json in parts that the JavaScript library computes as ``tokenizers`` does.

The library of ``libraries.TOKENIZERS`` reads the same file format. Some parts it computes differently: it knows digits
of ASCII only, and no merging splits. Where other parts have the same meaning, they replace those here; what is left is
refused by name. ``site/tokenizer.js`` mends what needs code.

One difference stays: NFC and its kin follow the browser's version of Unicode. ``tokenizers`` has an older one, which
does not know the order of some rare combining marks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tokenizers

from llamagpu.errors import UnsupportedModelError

Part = dict[str, Any]
_NUMBER = r"\p{N}"
_WORD = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200c}\x{200d}"
_PUNCTUATION = r"[!-/:-@\[-`{-~\p{P}]"
_GROUP = re.compile(r"(?<!\\)\((?!\?)")  # a group that captures
_DECODERS = ("ByteLevel", "ByteFallback", "Fuse", "Strip", "Metaspace")
_FORMS = ("NFC", "NFD", "NFKC", "NFKD", "Prepend")


def check_tokenizer(text: str) -> list[str]:
    """Why a tokenizer cannot work in a browser: the parts of a tokenizer.json without an equivalent there. Empty if it
    can."""
    return _translated(text)[1]


def browser_tokenizer(text: str) -> str:
    """A tokenizer.json that gives the ids and texts of the given one, and that the JavaScript library computes right.

    Raises:
        UnsupportedModelError: it has a part without an equivalent; the part is named.
    """
    whole, reasons = _translated(text)
    if reasons:
        raise UnsupportedModelError(
            "The model's tokenizer does not work in a browser.",
            f"It has {'; '.join(reasons)}, which the JavaScript library computes differently.",
            "Choose another model, or run this one from Python.",
        )
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":"))


def _translated(text: str) -> tuple[Part, list[str]]:
    """The translated tokenizer, and what could not be translated."""
    whole: Part = json.loads(tokenizers.Tokenizer.from_str(text).to_str())  # states every default
    reasons = [*_model(whole["model"]), *_added(whole)]
    for key, steps in (
        ("normalizer", _normalizers),
        ("pre_tokenizer", lambda part: _pre_tokenizers(part, whole["normalizer"])),
        ("decoder", _decoders),
    ):
        whole[key], refused = _sequence(key, whole[key], steps)
        reasons += refused
    return whole | {"truncation": None, "padding": None}, reasons


def _sequence(
    kind: str, part: Part | None, steps: Callable[[Part], list[Part] | None]
) -> tuple[Part | None, list[str]]:
    """A part as a sequence of its steps, each of them translated."""
    if part is None:
        return None, []
    made, refused = [], []
    for step in _flat(part):
        translated = steps(step)
        if translated is None:
            refused.append(f"the {kind} {_named(step)}")
        else:
            made += translated
    names = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
    return {"type": "Sequence", names[kind]: made} if made else None, refused


def _flat(part: Part) -> Iterator[Part]:
    if part["type"] != "Sequence":
        yield part
        return
    steps = next(value for key, value in part.items() if key != "type")
    for step in steps:
        yield from _flat(step)


def _named(step: Part) -> str:
    """A step's type with the values that decide whether it is supported."""
    shown = {k: v for k, v in step.items() if k in ("behavior", "pattern", "content", "invert")}
    return f"{step['type']} {json.dumps(shown, ensure_ascii=False):.120}" if shown else str(step["type"])


# --- the parts ------------------------------------------------------------------------------


def _model(model: Part) -> list[str]:
    kind = model.get("type")
    if kind == "BPE":
        settings = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
        return [f"the model setting {key} = {model[key]!r:.40}" for key in settings if model.get(key)]
    if kind == "Unigram":
        return ["a Unigram model with byte_fallback"] if model.get("byte_fallback") else []
    return [f"the model {kind}"]


def _added(whole: Mapping[str, Any]) -> list[str]:
    """Added tokens whose rules the library ignores."""
    tokens = whole["added_tokens"]
    alone = [t["content"] for t in tokens if t["single_word"]]
    reasons = [f"the added token {alone[0]!r:.40} with single_word"] if alone else []
    spaces = whole["pre_tokenizer"] and any(s.get("prepend_scheme") == "first" for s in _flat(whole["pre_tokenizer"]))
    if spaces and whole["normalizer"] and any(t["normalized"] for t in tokens):
        reasons.append("normalized added tokens beside a Metaspace for the first word")
    return reasons


def _normalizers(part: Part) -> list[Part] | None:
    kind = part["type"]
    if kind == "Strip":  # JavaScript strips other characters
        sides = [r"\A\s+"] * part["strip_left"] + [r"\s+\z"] * part["strip_right"]
        return [{"type": "Replace", "pattern": {"Regex": side}, "content": ""} for side in sides]
    if kind == "Replace":
        return _replace(part)
    return [part] if kind in _FORMS else None


def _decoders(part: Part) -> list[Part] | None:
    if part["type"] == "Replace":
        return _replace(part)
    return [part] if part["type"] in _DECODERS else None


def _replace(part: Part) -> list[Part] | None:
    return None if "$" in part["content"] else [part]  # $ has a meaning in JavaScript's replacements


def _pre_tokenizers(part: Part, normalizer: Part | None) -> list[Part] | None:
    match part["type"]:
        case "ByteLevel":
            return [part]
        case "Metaspace":
            # A split at each mark: the mark begins its piece.
            split = [_isolated(f"{part['replacement']}[^{part['replacement']}]*")] if part["split"] else []
            return [part | {"split": False}, *split]
        case "Digits":
            return [_isolated(_NUMBER if part["individual_digits"] else f"{_NUMBER}+")]
        case "Punctuation" if part["behavior"] in ("Isolated", "Contiguous"):
            return [_isolated(_PUNCTUATION + "+" * (part["behavior"] == "Contiguous"))]
        case "Whitespace":
            return [_matches(rf"[{_WORD}]+|[^{_WORD}\s]+")]
        case "WhitespaceSplit":
            return [_matches(r"\S+")]
        case "Split":
            return _split(part, normalizer)
    return None


def _split(part: Part, normalizer: Part | None) -> list[Part] | None:
    string = part["pattern"].get("String")
    if string is not None and _is_replaced(string, normalizer):
        return []
    pattern = part["pattern"]["Regex"] if string is None else re.escape(string)
    if part["behavior"] == "Isolated":
        return [_isolated(pattern)]
    if part["behavior"] != "Removed":
        return None
    if part["invert"]:
        return [_matches(pattern)]
    return None if _GROUP.search(pattern) else [part | {"pattern": {"Regex": pattern}}]


def _is_replaced(string: str, normalizer: Part | None) -> bool:
    """Whether the last step of the normalizer replaces a string, so that no text has it after it (Gemma)."""
    last = [*_flat(normalizer)][-1] if normalizer else {}
    found = last.get("type") == "Replace" and last["pattern"].get("String") == string
    return bool(found and string not in last["content"])


def _isolated(regex: str) -> Part:
    """A split into matches and what lies between them."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _matches(regex: str) -> Part:
    """A split into matches; what lies between them is dropped."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Removed", "invert": True}
