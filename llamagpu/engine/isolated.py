"""Models in a process of their own, which is started again if it dies: a driver that aborts cannot be caught.

wgpu-native aborts the process when a device is lost inside ``submit``. The requests that run then continue from their
tokens in the next process.
"""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamagpu.engine import messages
from llamagpu.engine.counters import Counters
from llamagpu.engine.messages import Channel
from llamagpu.engine.request import Request, Sequence, Token
from llamagpu.errors import DeviceLostError
from llamagpu.model.packs import Encoded, Floats
from llamagpu.model.weights import Progress

log = logging.getLogger("llamagpu")
AGAIN_SECONDS = 60.0  # a second death within this time is final
_END_SECONDS = 10.0  # for a process to end by itself
_PACKAGES = Path(__file__).resolve().parents[2]


class _Cancelled(threading.Event):
    """Tells the other process when it is set."""

    def __init__(self, tell: Callable[[], None]):
        super().__init__()
        self._tell = tell

    def set(self) -> None:
        if not self.is_set():
            super().set()
            self._tell()


class _Running:
    """A request, and what came back of it."""

    def __init__(self, request: Request, cancel: Callable[[], None]):
        self.sequence = Sequence(request, cancelled=_Cancelled(cancel))
        self._last: str | Exception | None = None  # the event that follows the tokens so far, if none comes after them

    def message(self, id: int) -> messages.Submit | None:
        """What asks a process for the rest; None if nothing is left to ask for."""
        sequence, request = self.sequence, self.sequence.request
        if sequence.cancelled.is_set():
            sequence.events.put("cancelled")
            return None
        if self._last is not None:
            sequence.events.put(self._last)
            return None
        outline = None if request.guide is None else request.guide.outline
        return messages.Submit(id, replace(request, guide=None), tuple(sequence.tokens[len(request.prompt) :]), outline)

    def take(self, event: Any, cached: int | None = None) -> bool:
        """Take an event; whether it was the last one."""
        sequence = self.sequence
        if sequence.events.cached is None:
            sequence.events.cached = cached
        if isinstance(event, Token):
            self._last = sequence.take(event.id)
            sequence.length = max(sequence.length, len(sequence.request.prompt))
        sequence.events.put(event)
        return not isinstance(event, Token)


@dataclass
class _Encoding:
    """Texts, and their vectors to come."""

    texts: list[Encoded]
    modes: tuple[str, ...]
    done: Future[Floats]

    def message(self, id: int) -> messages.Encode:
        """See ``_Running.message``."""
        return messages.Encode(id, self.texts, self.modes)

    def take(self, event: Any, cached: int | None = None) -> bool:
        """See ``_Running.take``."""
        (self.done.set_exception if isinstance(event, Exception) else self.done.set_result)(event)
        return True


class Supervisor:
    """Keeps a process with a model running. Any thread may call it.

    Args:
        arguments: of the session there; see ``child``.
        progress: called with (bytes loaded, bytes in total).

    Attributes:
        facts: what the process says of its model.
        deaths: processes that died and were replaced.
        counters: of a decoder, as of the last event, those of processes that died included.

    Raises:
        LlamaGPUError: the model cannot be loaded there.
    """

    def __init__(self, arguments: Mapping[str, Any], progress: Progress | None = None):
        self._opening = messages.Open(arguments, log.getEffectiveLevel())
        self._lock = threading.Lock()
        self._pending: dict[int, _Running | _Encoding] = {}
        self._ids = itertools.count()
        self._failure: Exception | None = None
        self._died: float | None = None
        self.deaths = 0
        self._process, self._channel = self._start()
        self.facts = self._opened(progress)
        self._counted_before = Counters()
        self.counters: Counters = self.facts.get("counters", Counters())
        self._reader = threading.Thread(target=self._read, name="llamagpu-supervisor", daemon=True)
        self._reader.start()

    def submit(self, request: Request) -> Sequence:
        """Queue a request; the events of the returned sequence come as those of ``Engine.submit``."""
        id = next(self._ids)

        def cancel() -> None:
            if id in self._pending:
                self._channel.send(messages.Cancel(id))

        running = _Running(request, cancel)
        self._ask(id, running)
        return running.sequence

    def encode(self, texts: list[Encoded], modes: tuple[str, ...]) -> Future[Floats]:
        """Queue texts, as ``EncoderEngine.submit`` does."""
        encoding = _Encoding(texts, modes, Future())
        self._ask(next(self._ids), encoding)
        return encoding.done

    def close(self) -> None:
        """End the process. What runs ends with an error."""
        self._fail(DeviceLostError("The model was closed.", "It was still running.", "Load it again."))
        self._channel.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if threading.current_thread() is not self._reader:  # garbage is collected on any thread
            self._reader.join()

    def _ask(self, id: int, item: _Running | _Encoding) -> None:
        with self._lock:
            if self._failure is not None:
                item.take(self._failure)
                return
            self._pending[id] = item
            self._channel.send(item.message(id))

    def _start(self) -> tuple[subprocess.Popen[bytes], Channel]:
        command = [sys.executable, "-m", "llamagpu.engine.child"]
        paths = [str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]  # the child imports the same package
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert process.stdin is not None
        assert process.stdout is not None
        channel = Channel(process.stdout, process.stdin)
        channel.send(self._opening)
        return process, channel

    def _opened(self, progress: Progress | None = None) -> Mapping[str, Any]:
        """Wait until the model is loaded.

        Raises:
            LlamaGPUError: it cannot be loaded, or the process died.
        """
        while True:
            try:
                message = self._channel.receive()
            except EOFError:
                self._channel.finish()
                raise self._dead() from None
            if isinstance(message, messages.Opened):
                return message.facts
            if isinstance(message, messages.Refused):
                self._process.wait()
                self._channel.finish()
                raise message.error
            if isinstance(message, messages.Progressed) and progress is not None:
                progress(message.done, message.total)
            self._log(message)

    def _read(self) -> None:
        """Deliver what comes, and replace a process that died; on a thread of its own."""
        while True:
            try:
                message = self._channel.receive()
            except EOFError:
                self._channel.finish()
                if self._failure is not None or not self._replace():
                    return
                continue
            self._log(message)
            if isinstance(message, messages.Event):
                if message.counters is not None:
                    self.counters = message.counters.after(self._counted_before)
                with self._lock:
                    item = self._pending.get(message.id)
                    if item is not None and item.take(message.event, message.cached):
                        del self._pending[message.id]

    def _replace(self) -> bool:
        """Start another process and send it the pending requests. False if it died too soon again, or cannot start."""
        error, now = self._dead(), time.monotonic()
        if self._died is not None and now - self._died < AGAIN_SECONDS:
            self._fail(
                DeviceLostError(error.what, f"It is the second time in {AGAIN_SECONDS:.0f} seconds.", error.hint)
            )
            return False
        self._died = now
        log.warning("%s It is started again", error.what)
        try:
            with self._lock:
                self._process, self._channel = self._start()
                self.facts = self._opened()
                self._counted_before = self.counters
                self.counters = self.facts.get("counters", Counters()).after(self._counted_before)
                for id, item in list(self._pending.items()):
                    message = item.message(id)
                    if message is None:
                        del self._pending[id]
                    else:
                        self._channel.send(message)
        except Exception as e:
            self._fail(e)
            return False
        self.deaths += 1
        log.warning("the model's process works again after %.1f seconds", time.monotonic() - now)
        return True

    def _dead(self) -> DeviceLostError:
        code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        hint = "If it happens again, try a smaller model or another --device."
        return DeviceLostError(f"The process with the model ended ({how}).", "The driver ended it.", hint)

    def _fail(self, error: Exception) -> None:
        """End everything with an error, for good."""
        with self._lock:
            self._failure = self._failure or error
            for item in self._pending.values():
                item.take(self._failure)
            self._pending.clear()

    @staticmethod
    def _log(message: Any) -> None:
        if isinstance(message, messages.Logged):
            log.log(message.level, "%s", message.text)
