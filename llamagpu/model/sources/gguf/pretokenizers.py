"""How byte-level BPE tokenizers split a text before merging, by ``tokenizer.ggml.pre``.

The expressions are those of the models' own tokenizer.json; llama.cpp has equivalents (``llm_tokenizer_bpe``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
_QWEN2 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_GPT_4O = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_SHORT}?|{_BEFORE}{_UPPER}+{_LOWER}*{_SHORT}?|\p{{N}}{{1,3}}|{_PUNCTUATION}|{_REST}"
)
_TEKKEN = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_PUNCTUATION}|{_REST}"
_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_HUNYUAN = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    rf"{_REST}"
)


@dataclass(frozen=True)
class Pretokenizer:
    """Expressions that split a text one after another; whether a piece that is a token needs no merges, whether texts
    begin with BOS if the file does not say, and whether texts are normalized to NFC."""

    splits: tuple[str, ...]
    ignore_merges: bool = False
    bos: bool = False
    nfc: bool = False


_LIKE_LLAMA3 = Pretokenizer((_LLAMA3,), ignore_merges=True, bos=True)
_DIGITS = Pretokenizer((r"\p{N}", _GPT_2))
_LIKE_QWEN2 = Pretokenizer((_QWEN2,), nfc=True)
PRETOKENIZERS = {
    "llama-bpe": _LIKE_LLAMA3,
    "llama3": _LIKE_LLAMA3,
    "llama-v3": _LIKE_LLAMA3,
    "smaug-bpe": Pretokenizer((_LLAMA3,)),
    "dbrx": Pretokenizer((_LLAMA3,)),
    "qwen2": _LIKE_QWEN2,
    "deepseek-r1-qwen": _LIKE_QWEN2,
    "hunyuan": Pretokenizer((_QWEN2,)),
    "hunyuan-dense": Pretokenizer((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _HUNYUAN)),
    "smollm": _DIGITS,
    "refact": _DIGITS,
    "starcoder": _DIGITS,
    "exaone": _DIGITS,
    "exaone4": Pretokenizer((_GPT_2,)),
    "gpt-2": Pretokenizer((_GPT_2,)),
    "olmo": Pretokenizer((_GPT_2,)),
    "gpt-4o": Pretokenizer((_GPT_4O,)),
    "tekken": Pretokenizer((_TEKKEN,), ignore_merges=True, bos=True),
    "default": Pretokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT_2, r"\p{N}+", "[0-9][0-9][0-9]")),
}


def split_steps(pre: Pretokenizer) -> list[dict[str, Any]]:
    """The steps of a tokenizer.json: each split, then the letters that stand for bytes."""
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False} for split in pre.splits
    ]
    return [*steps, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]
