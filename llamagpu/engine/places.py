"""How many requests of a model may wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from llamagpu.engine.request import Events, Request, Sequence
from llamagpu.engine.stream import Submits
from llamagpu.errors import BusyError
from llamagpu.model.forward import BATCHES

PLACES = BATCHES[-1]  # sequences that decode together


class Places:
    """An engine that refuses requests beyond a queue. From any thread.

    Args:
        queue: the most requests that may wait beside the ``PLACES`` that run together; None is any number.
    """

    def __init__(self, engine: Submits, queue: int | None = None):
        self._engine, self._queue = engine, queue
        self._lock = threading.RLock()  # ``submit`` is called within ``room_for``
        self._open: list[Events] = []

    @property
    def most(self) -> int | None:
        """The most requests at once; None is any number."""
        return None if self._queue is None else PLACES + self._queue

    def submit(self, request: Request) -> Sequence:
        """Queue a request.

        Raises:
            BusyError: the queue is full.
        """
        if self._queue is None:
            return self._engine.submit(request)
        with self.room_for(1):
            sequence = self._engine.submit(request)
            self._open.append(sequence.events)
            return sequence

    @contextmanager
    def room_for(self, count: int) -> Iterator[None]:
        """Keep room for requests that are submitted in the block.

        Raises:
            BusyError: they are too many.
        """
        most = self.most
        if most is None:
            yield
            return
        with self._lock:
            self._open = [events for events in self._open if not events.ended]
            if len(self._open) + count > most:
                self._refuse(count, most)
            yield

    def _refuse(self, count: int, most: int) -> None:
        running = min(len(self._open), PLACES)
        hint = "Ask again later, or load the model with a larger queue."
        if count > most:
            hint = f"A call may have {most} requests at most; this one has {count}. Load the model with a larger queue."
        raise BusyError.full(running, len(self._open) - running, hint)
