"""A process that holds a model for another one: ``python -m llamagpu.engine.child``, which ``isolated`` starts."""

from __future__ import annotations

import logging
import os
import signal
import sys
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from llamagpu.engine import messages
from llamagpu.engine.encoder_session import EncoderSession
from llamagpu.engine.messages import Channel, sendable
from llamagpu.engine.request import Events, Sequence, Token
from llamagpu.engine.session import Session
from llamagpu.errors import DeviceLostError
from llamagpu.model import prepare
from llamagpu.model.find import open_source
from llamagpu.model.packs import Floats
from llamagpu.text import Tokenizer
from llamagpu.text.guide import Guides

log = logging.getLogger("llamagpu")


class _Log(logging.Handler):
    """Sends records to the other process."""

    def __init__(self, channel: Channel):
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send(messages.Logged(record.levelno, record.getMessage()))


class _Events(Events):
    """The events of a request go to the other process."""

    def __init__(self, child: Child, id: int):
        self._child, self._id = child, id

    def put(self, event: Any, block: bool = True, timeout: float | None = None) -> None:
        if not isinstance(event, Token):
            self._child.running.pop(self._id, None)
        self._child.answer(self._id, event, self.cached)


class Child:
    """The model of this process, and what runs on it.

    Attributes:
        running: requests by their ids.
    """

    def __init__(self, channel: Channel, opening: messages.Open):
        self._channel = channel
        self.running: dict[int, Sequence] = {}
        given = dict(opening.arguments)
        path, kind = Path(given.pop("path")), given.pop("kind")
        self._session: Session | EncoderSession
        if kind == "encoder":
            self._session = EncoderSession(open_source(path), progress=self._progress, **given)
        else:
            self._prepared = prepare(path, given.pop("dtype"), given.pop("head"))
            self._session = Session(self._prepared, progress=self._progress, **given)
        facts: dict[str, Any] = {"adapter": str(self._session.device.adapter), "sizes": self._session.sizes}
        if isinstance(self._session, Session):
            facts |= {"adapters": self._session.digests, "counters": self._session.counters}
        channel.send(messages.Opened(facts))

    def serve(self) -> None:
        """Handle messages until the other process ends, or closes its pipe."""
        with self._session:
            while True:
                try:
                    message = self._channel.receive()
                except EOFError:
                    return
                try:
                    self._handle(message)
                except Exception as e:
                    self.answer(message.id, e)

    def answer(self, id: int, event: Any, cached: int | None = None) -> None:
        """Send an event."""
        counters = self._session.counters if isinstance(self._session, Session) else None
        event = sendable(event) if isinstance(event, Exception) else event
        self._channel.send(messages.Event(id, event, cached, counters))

    def _handle(self, message: messages.Submit | messages.Cancel | messages.Encode) -> None:
        if isinstance(message, messages.Submit):
            assert isinstance(self._session, Session)
            events = _Events(self, message.id)
            guide = None if message.outline is None else self._guides.again(message.outline)
            request = replace(message.request, guide=guide)
            self.running[message.id] = self._session.engine.submit(request, events=events, earlier=message.made)
        elif isinstance(message, messages.Encode):
            done = self._session.packs().submit(message.texts, message.modes)
            done.add_done_callback(lambda future: self._encoded(message.id, future))
        elif message.id in self.running:
            self.running[message.id].cancelled.set()

    @cached_property
    def _guides(self) -> Guides:
        """The grammars of the model's vocabulary."""
        source, config = self._prepared.source, self._prepared.config
        tokenizer = Tokenizer(source.tokenizer_file(), source.tokenizer_config(), config.vocab_size)
        return Guides(tokenizer, config.vocab_size, config.eos_token_id)

    def _encoded(self, id: int, future: Future[Floats]) -> None:
        error = future.exception()
        self.answer(id, future.result() if error is None else error)

    def _progress(self, done: int, total: int) -> None:
        self._channel.send(messages.Progressed(done, total))


def main() -> None:
    """Serve the process at the other ends of standard input and output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process handles Ctrl-C
    channel = Channel(sys.stdin.buffer, os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # what a driver prints must not be taken for a message
    log.addHandler(_Log(channel))
    opening = channel.receive()
    log.setLevel(opening.log_level)
    try:
        child = Child(channel, opening)
    except Exception as e:
        channel.send(messages.Refused(sendable(e)))
        return
    try:
        child.serve()
    except DeviceLostError:
        pass  # every request has got the error


if __name__ == "__main__":
    main()
