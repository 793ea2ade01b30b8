"""Tokens of a text with their log-probabilities and bytes, and OpenAI's two shapes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llamagpu.engine.request import Token
from llamagpu.text import Tokenizer

Data = bytes  # a field has the type's name
_LEAST = -9999.0  # stands for a logarithm of 0, which JSON lacks


@dataclass(frozen=True)
class TextToken(Token):
    """A new token with its log-probability, and with what it adds to the text.

    Attributes:
        bytes: what it adds, which may be a part of a character.
        top_bytes: the same of the likeliest tokens, ``top``.
        offset: the characters of the text before it; None if it is no part of the text, as a token that ended it.
    """

    bytes: Data = b""
    top_bytes: list[Data] = field(default_factory=list)
    offset: int | None = None

    @classmethod
    def of(cls, token: Token, tokenizer: Tokenizer, offset: int | None) -> TextToken:
        """A token of a text."""
        top = [tokenizer.token_bytes(id) for id, _ in token.top]
        return cls(token.id, token.logprob, token.top, tokenizer.token_bytes(token.id), top, offset)

    @property
    def text(self) -> str:
        """What it adds; see ``text_of``."""
        return text_of(self.bytes)

    def likely(self, wanted: int | None = None) -> list[tuple[Data, float]]:
        """The bytes and log-probabilities of the likeliest tokens, all or the first ``wanted``."""
        return [(data, max(p, _LEAST)) for data, (_, p) in zip(self.top_bytes, self.top, strict=True)][:wanted]

    def chosen(self) -> tuple[Data, float]:
        """Its bytes and its log-probability."""
        return self.bytes, max(self.logprob or 0.0, _LEAST)

    def as_dict(self) -> dict[str, Any]:
        """Its fields as JSON values."""
        own = {"id": self.id, "text": self.text, "bytes": list(self.bytes), "logprob": self.logprob}
        likely = [(id, p, text_of(data)) for (id, p), data in zip(self.top, self.top_bytes, strict=True)]
        return own | {"offset": self.offset, "top": likely}


def text_of(data: bytes) -> str:
    """The text of a token; OpenAI's way to write one that is a part of a character: ``bytes:\\xe2\\x80``."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(tokens: Sequence[TextToken], wanted: int | None = None) -> dict[str, Any]:
    """The ``logprobs`` of a choice of OpenAI's chat completions, with all likeliest tokens or the first ``wanted``."""

    def entry(data: bytes, logprob: float) -> dict[str, Any]:
        return {"token": text_of(data), "logprob": logprob, "bytes": list(data)}

    content = [
        entry(*token.chosen()) | {"top_logprobs": [entry(*likely) for likely in token.likely(wanted)]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[TextToken], wanted: int | None = None) -> dict[str, Any]:
    """The ``logprobs`` of a choice of OpenAI's completions; see ``chat_logprobs``."""
    chosen = [token.chosen() for token in tokens]
    return {
        "tokens": [text_of(data) for data, _ in chosen],
        "token_logprobs": [logprob for _, logprob in chosen],
        "top_logprobs": [
            {text_of(data): p for data, p in (*token.likely(wanted), own)}
            for token, own in zip(tokens, chosen, strict=True)
        ],
        "text_offset": [token.offset for token in tokens],
    }
