"""How many sequences of a model run at once, and how many may wait."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llamagpu.errors import BusyError

_LONGEST_WAIT = 60  # seconds, of Retry-After


class Gate:
    """Places for sequences, given in the order in which they were asked for. On the event loop.

    Args:
        places: sequences that run at once.
        queue: sequences that may wait before further requests are refused.

    Attributes:
        running: sequences that have a place.
        waiting: sequences that wait for one.
    """

    def __init__(self, places: int, queue: int):
        self._places, self._queue = places, queue
        self._free = asyncio.Semaphore(places)
        self.running = self.waiting = 0
        self._seconds = 1.0  # that a sequence keeps its place, averaged

    def check(self) -> None:
        """Refuse a new request if the queue is full.

        Raises:
            BusyError: it is; ``retry_after`` estimates when it will not be.
        """
        if self._free.locked() and self.waiting >= self._queue:
            raise BusyError.full(self.running, self.waiting, "Send the request again later.", self._retry_after())

    def _retry_after(self) -> int:
        return min(max(1, math.ceil(self._seconds * (self.waiting + 1) / self._places)), _LONGEST_WAIT)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place, and keep it for the block."""
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds += (time.monotonic() - start - self._seconds) / 8
            self.running -= 1
            self._free.release()
