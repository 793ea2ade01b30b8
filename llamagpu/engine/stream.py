"""A running generation on the caller's side: pieces of text, then a result."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llamagpu.engine.request import Request, Sequence, Token
from llamagpu.engine.result import Result, Stopwatch
from llamagpu.errors import LlamaGPUError, Unique
from llamagpu.text import StopFilter, TextStream, Tokenizer


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

    Pieces never split a character, and never hold a part of a stop string.
    """

    def __init__(
        self, engine: Submits, request: Request, tokenizer: Tokenizer, context: int, stop: tuple[str, ...] = ()
    ):
        self._request, self._context = request, context
        self._text = TextStream(tokenizer, request.prompt)
        self._filter = StopFilter(stop)
        self._watch = Stopwatch()
        self._pieces: list[str] = []
        self._tokens: list[Token] = []
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

    def close(self) -> None:
        """Stop generating. The result so far stays available."""
        self._sequence.cancelled.set()

    def __next__(self) -> str:
        with self._lock:
            while self._result is None:
                event = self._next()
                if isinstance(event, str):
                    piece = self._end(event)
                else:
                    piece = self._token(event)
                if piece:
                    return piece
            raise StopIteration

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
        self._tokens.append(token)
        if token.id in self._request.stop_ids:
            return ""
        piece = self._filter.push(self._text.push(token.id))
        self._pieces.append(piece)
        if self._filter.stopped:
            self._sequence.cancelled.set()
            self._done("stop")
        return piece

    def _end(self, reason: str) -> str:
        piece = self._filter.push(self._text.flush()) + self._filter.flush()
        self._pieces.append(piece)
        self._done("stop" if self._filter.stopped else reason)
        return piece

    def _done(self, reason: str) -> None:
        settings = self._request.settings
        full = len(self._request.prompt) + len(self._tokens) >= self._context
        self._result = Result(
            text="".join(self._pieces),
            token_ids=[t.id for t in self._tokens],
            prompt_token_ids=list(self._request.prompt),
            finish_reason=reason,
            context_full=reason == "length" and full,
            seed=settings.seed if settings.temperature else None,
            logprobs=self._tokens if settings.logprobs else None,
            timings=self._watch.timings,
        )
