"""The JSON of generations, in the shapes of OpenAI's two endpoints, whole and in chunks."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from llamagpu.engine.logprobs import TextToken, chat_logprobs, completion_logprobs
from llamagpu.version import __version__

if TYPE_CHECKING:
    from llamagpu.engine import Result

Tokens = Sequence[TextToken]
DONE = "data: [DONE]\n\n"
WAITING = ": waiting\n\n"  # a comment, which keeps proxies from closing a silent stream


# Line ends to Python's ``splitlines``, by which some clients cut a stream. JSON escapes the others.
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


def event(data: Any) -> str:
    """A server-sent event with JSON."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text if text.isascii() else text.translate(_LINE_ENDS)}\n\n"


def usage(results: Iterable[Result], choices: int) -> dict[str, Any]:
    """Tokens of prompts, each counted once, and of texts. ``choices`` results in a row have the same prompt; the first
    of them tells what came from the cache."""
    found = list(results)
    prompt = sum(result.prompt_tokens for result in found[::choices])
    made = sum(result.completion_tokens for result in found)
    cached = {"cached_tokens": sum(result.cached_tokens for result in found[::choices])}
    counts = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
    return counts | {"prompt_tokens_details": cached}


class Shape:
    """An endpoint's shape.

    Args:
        model: the name of the model in the answer.
        wanted: the likeliest tokens to tell with each token; None tells no log-probabilities.
    """

    prefix, whole, part = "", "", ""

    def __init__(self, model: str, wanted: int | None):
        self._wanted = wanted
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._head["system_fingerprint"] = f"llamagpu-{__version__}"

    def answer(self, choices: list[dict[str, Any]], used: dict[str, Any]) -> dict[str, Any]:
        """The whole answer."""
        return {**self._head, "object": self.whole, "choices": choices, "usage": used}

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """A part of an answer."""
        return {**self._head, "object": self.part, "choices": choices, **more}

    def choice(self, index: int, result: Result, tokens: Tokens) -> dict[str, Any]:
        """A text in a whole answer."""
        raise NotImplementedError

    def first(self, index: int) -> dict[str, Any] | None:
        """What begins a text in chunks."""
        return None

    def delta(self, index: int, text: str, tokens: Tokens, reason: str | None = None) -> dict[str, Any]:
        """A piece of a text in chunks; the last one has a reason and no text."""
        raise NotImplementedError

    def calls(self, index: int, deltas: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Pieces of calls of tools in chunks."""
        raise NotImplementedError


class Chat(Shape):
    """/v1/chat/completions."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, index: int, result: Result, tokens: Tokens) -> dict[str, Any]:
        """See ``Shape.choice``."""
        message, logprobs = result.message | {"refusal": None}, self._logprobs(tokens)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": result.finish_reason}

    def first(self, index: int) -> dict[str, Any]:
        """See ``Shape.first``."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(self, index: int, text: str, tokens: Tokens, reason: str | None = None) -> dict[str, Any]:
        """See ``Shape.delta``."""
        return self._delta(index, {"content": text} if reason is None else {}, tokens, reason)

    def calls(self, index: int, deltas: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Pieces of calls of tools in chunks."""
        return self._delta(index, {"tool_calls": list(deltas)}, ())

    def _delta(self, index: int, delta: dict[str, Any], tokens: Tokens, reason: str | None = None) -> dict[str, Any]:
        logprobs = self._logprobs(tokens) if tokens else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, tokens: Tokens) -> dict[str, Any] | None:
        return None if self._wanted is None else chat_logprobs(tokens, self._wanted)


class Completion(Shape):
    """/v1/completions."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def choice(self, index: int, result: Result, tokens: Tokens) -> dict[str, Any]:
        """See ``Shape.choice``."""
        return self.delta(index, result.text, tokens, result.finish_reason)

    def delta(self, index: int, text: str, tokens: Tokens, reason: str | None = None) -> dict[str, Any]:
        """See ``Shape.delta``."""
        return {"index": index, "text": text, "logprobs": self._logprobs(tokens), "finish_reason": reason}

    def _logprobs(self, tokens: Tokens) -> dict[str, Any] | None:
        return None if self._wanted is None else completion_logprobs(tokens, self._wanted)
