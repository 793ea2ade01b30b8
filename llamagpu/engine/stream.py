"""A running generation on the caller's side: pieces of text, then a result."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from collections.abc import Sequence as List
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llamagpu.engine.logprobs import TextToken
from llamagpu.engine.request import Request, Sequence, Token
from llamagpu.engine.result import Result, Stopwatch
from llamagpu.errors import LlamaGPUError, Unique
from llamagpu.text import StopFilter, TextStream, Tokenizer
from llamagpu.text.tool_calls import NoCalls
from llamagpu.text.tools import ToolUse


class Submits(Protocol):
    """An engine, here or in another process."""

    def submit(self, request: Request) -> Sequence:
        """Queue a request."""


def next_event(sequence: Sequence) -> Any:
    """Wait for a sequence's next event. It wakes often, so that Ctrl-C works on every platform."""
    while True:
        try:
            event = sequence.events.get(timeout=0.2)
        except queue.Empty:
            continue
        if isinstance(event, Exception):
            raise event
        return event


def wait_logits(engine: Submits, request: Request) -> npt.NDArray[np.float32]:
    """Run a request for logits, and wait for them."""
    sequence = engine.submit(request)
    out: npt.NDArray[np.float32] | str
    try:
        out = next_event(sequence)
    finally:
        sequence.cancelled.set()
    if isinstance(out, str):
        raise LlamaGPUError("The computation was cancelled.")
    return out


class Stream(Unique, Iterator[str]):
    """An iterator of text pieces; ``result`` is complete when it ends. ``close`` stops it early.

    Pieces never split a character, and never hold a part of a stop string. A program that must not wait, such as an
    event loop, has ``listen`` tell it when to ``take`` the next piece.

    Calls of tools are no part of the pieces.

    Attributes:
        tokens: the new tokens so far, including one that ended the text.
        logprobs: the same tokens with what they add to the text, if log-probabilities are wanted.
    """

    def __init__(
        self,
        engine: Submits,
        request: Request,
        tokenizer: Tokenizer,
        context: int,
        stop: tuple[str, ...] = (),
        tools: ToolUse | None = None,
    ):
        self._request, self._context = request, context
        self._tokenizer = tokenizer
        self._text = TextStream(tokenizer, request.prompt, keep=() if tools is None else tools.keep)
        self._filter = StopFilter(stop)
        self._calls = NoCalls() if tools is None else tools.reader()
        self._watch = Stopwatch()
        self._characters = 0  # before a stop string, calls included
        self._pieces: list[str] = []
        self._decoded = 0  # characters, a stop string included
        self.tokens: list[Token] = []
        self.logprobs: list[TextToken] = []
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._lock = threading.Lock()  # several threads may read a stream
        self._sequence = engine.submit(request)

    def __del__(self) -> None:
        if hasattr(self, "_sequence"):
            self._sequence.cancelled.set()

    @property
    def result(self) -> Result:
        """The finished generation; waits for its end."""
        for _ in self:
            pass
        assert self._result is not None
        return self._result

    @property
    def prompt_tokens(self) -> tuple[int, int]:
        """Tokens of the prompt that have been through the model, and tokens of the prompt in all."""
        total = len(self._request.prompt)
        return min(self._sequence.length, total), total

    @property
    def call_deltas(self) -> List[dict[str, Any]]:
        """The calls of tools so far, in the deltas of OpenAI's streams; see ``CallReader.deltas``."""
        return self._calls.deltas

    def close(self) -> None:
        """Stop generating. The result so far stays available."""
        self._sequence.cancelled.set()

    @property
    def done(self) -> bool:
        """Whether the result is complete."""
        return self._result is not None

    def listen(self, listener: Callable[[], None]) -> None:
        """Have a function called, once now and then whenever ``take`` may have more to give. The engine's thread calls
        it: it must neither wait nor raise."""
        self._sequence.events.listener = listener
        listener()

    def take(self) -> str:
        """The text that has come and was not returned yet; never waits.

        Raises:
            LlamaGPUError: the generation ended with an error.
        """
        pieces = []
        with self._lock:
            while not self.done and (self._error is not None or not self._sequence.events.empty()):
                pieces.append(self._advance())
        return "".join(pieces)

    def __next__(self) -> str:
        with self._lock:
            while not self.done:
                piece = self._advance()
                if piece:
                    return piece
            raise StopIteration

    def _advance(self) -> str:
        """Wait for the next event; returns the text that is certain with it."""
        event = self._next()
        return self._end(event) if isinstance(event, str) else self._token(event)

    def _next(self) -> Any:
        if self._error is not None:
            raise self._error
        try:
            return next_event(self._sequence)
        except Exception as e:
            self._error = e  # no events follow it
            raise
        except BaseException:
            self._sequence.cancelled.set()
            raise

    def _token(self, token: Token) -> str:
        self._watch.token()
        self.tokens.append(token)
        ends = token.id in self._request.stop_ids
        if self._request.settings.logprobs:
            self.logprobs.append(TextToken.of(token, self._tokenizer, None if ends else self._decoded))
        if ends:
            return ""
        text = self._text.push(token.id)
        self._decoded += len(text)
        piece = self._told(self._filter.push(text))
        if self._filter.stopped or self._calls.full:
            self._sequence.cancelled.set()
            piece += self._done("stop")
        return piece

    def _told(self, text: str) -> str:
        """The part of a text that is certainly no part of a call."""
        self._characters += len(text)
        self._pieces.append(self._calls.push(text))
        return self._pieces[-1]

    def _end(self, reason: str) -> str:
        piece = self._told(self._filter.push(self._text.flush()) + self._filter.flush())
        return piece + self._done("stop" if self._filter.stopped else reason)

    def _done(self, reason: str) -> str:
        """Make the result; returns the text that was held back until the end."""
        settings = self._request.settings
        full = len(self._request.prompt) + len(self.tokens) >= self._context
        if self._filter.stopped:  # tokens of the stop string are no part of the text
            most = self._characters
            self.logprobs = [replace(t, offset=None) if (t.offset or 0) >= most else t for t in self.logprobs]
        self._pieces.append(self._calls.end())
        self._result = Result(
            text="".join(self._pieces),
            tool_calls=tuple(self._calls.calls),
            token_ids=[t.id for t in self.tokens],
            prompt_token_ids=list(self._request.prompt),
            finish_reason="tool_calls" if self._calls.calls and reason == "stop" else reason,
            context_full=reason == "length" and full,
            seed=settings.seed if settings.temperature else None,
            logprobs=self.logprobs if settings.logprobs else None,
            timings=self._watch.timings,
            cached_tokens=self._sequence.events.cached or 0,
        )
        return self._pieces[-1]
