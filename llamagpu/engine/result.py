"""The result of a generation."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from llamagpu.engine.logprobs import TextToken, chat_logprobs
from llamagpu.errors import UsageError
from llamagpu.text.tool_json import ToolCall


@dataclass
class Timings:
    """Seconds: from the request to the first token (queueing and prefill), and from there to the last."""

    prefill_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True)
class Result:
    """A finished generation.

    Attributes:
        text: the text that the new tokens add to the decoded prompt, without a stop string and calls of tools.
        token_ids: the new tokens, including the one that ended the text.
        prompt_token_ids: the prompt's tokens.
        finish_reason: ``stop`` (an end token or a stop string), ``tool_calls`` (the same, or as many calls as are
            allowed), ``length`` (max_tokens, or the context is full) or ``cancelled``.
        context_full: whether ``length`` means that the context ended it.
        seed: the seed, if tokens were drawn.
        cached_tokens: tokens of the prompt whose keys and values came from the cache.
        tool_calls: the calls of tools that the model asks for, in order. What is no valid call is in ``text``.
        logprobs: with ``logprobs=n``, every token with its text, its log-probability and the n likeliest ones.
    """

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: str
    context_full: bool
    seed: int | None
    logprobs: list[TextToken] | None = None
    timings: Timings = field(default_factory=Timings)
    cached_tokens: int = 0
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def completion_tokens(self) -> int:
        """New tokens."""
        return len(self.token_ids)

    def as_dict(self) -> dict[str, Any]:
        """All fields and counts, as JSON values."""
        out = asdict(self) | {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        out["tool_calls"] = [call.as_openai() for call in self.tool_calls]
        if self.logprobs is not None:
            out["logprobs"] = [token.as_dict() for token in self.logprobs]
        return out

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message of a conversation, in OpenAI's form."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.tool_calls:
            message |= {"content": self.text or None, "tool_calls": [c.as_openai() for c in self.tool_calls]}
        return message

    def openai_logprobs(self) -> dict[str, Any]:
        """The ``logprobs`` of a choice of OpenAI's chat completions: ``content`` with the text's tokens, of each
        ``token``, ``logprob``, ``bytes`` and ``top_logprobs``.

        Raises:
            UsageError: the generation was not asked for log-probabilities.
        """
        if self.logprobs is None:
            raise UsageError("The result has no log-probabilities.", "", "Ask for them: logprobs=5.")
        return chat_logprobs([token for token in self.logprobs if token.offset is not None])


class Stopwatch:
    """Takes the timings of one request."""

    def __init__(self) -> None:
        self.timings = Timings()
        self._start = time.perf_counter()
        self._first: float | None = None

    def token(self) -> None:
        """A token arrived."""
        now = time.perf_counter()
        if self._first is None:
            self._first = now
            self.timings.prefill_s = now - self._start
        self.timings.decode_s = now - self._first
