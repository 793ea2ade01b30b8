"""Streams on an event loop: no thread waits for a generation, its engine wakes the loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Self

from llamagpu.engine.request import Token
from llamagpu.engine.result import Result
from llamagpu.engine.stream import Stream
from llamagpu.errors import LlamaGPUError, UsageError


class Taker:
    """Takes what a stream makes, on the running event loop.

    Attributes:
        stream: the stream; nothing else may read it meanwhile.
    """

    def __init__(self, stream: Stream):
        self.stream = stream
        self._woken = woken = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:  # it holds no stream, so that a stream that nobody reads is cancelled
            if not woken.is_set():
                try:
                    loop.call_soon_threadsafe(woken.set)
                except RuntimeError:  # the loop has ended
                    pass

        stream.listen(wake)

    async def take(self) -> str:
        """Wait for tokens, or the end; returns the text that came with them, if any. Cancelling it cancels the
        generation.

        Raises:
            LlamaGPUError: the generation ended with an error.
        """
        try:
            if not self.stream.done:
                await self._woken.wait()
        except BaseException:
            self.stream.close()
            raise
        self._woken.clear()
        try:
            return self.stream.take()
        except LlamaGPUError:
            self._woken.set()  # nothing follows: who asks again gets the error again
            raise

    async def result(self) -> Result:
        """Wait for the end; returns the result."""
        while not self.stream.done:
            await self.take()
        return self.stream.result


class AsyncStream(AsyncIterator[str]):
    """An asynchronous iterator of text pieces, as ``Stream`` is one for threads.

    The generation begins with the first piece that is asked for, or with an ``async with`` block. Leaving the block,
    ``aclose``, cancelling the task that waits for a piece, and dropping the stream stop it.

    Args:
        start: starts the generation; on a thread, because long prompts take their time.
    """

    def __init__(self, start: Callable[[], Stream]):
        self._start = start
        self._taker: Taker | None = None
        self._starting = asyncio.Lock()
        self._closed = False

    async def __aenter__(self) -> Self:
        await self._begun()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def __anext__(self) -> str:
        taker = await self._begun()
        while not taker.stream.done:
            if piece := await taker.take():
                return piece
        raise StopAsyncIteration

    @property
    def tokens(self) -> list[Token]:
        """The new tokens so far, including one that ended the text."""
        return [] if self._taker is None else self._taker.stream.tokens

    async def result(self) -> Result:
        """The finished generation; waits for its end. Of a stream that was closed, what it had made."""
        return await (await self._begun()).result()

    async def aclose(self) -> None:
        """Stop generating. The result so far stays available."""
        self._closed = True
        if self._taker is not None:
            self._taker.stream.close()

    async def _begun(self) -> Taker:
        async with self._starting:
            if self._taker is None:
                if self._closed:
                    raise UsageError("The stream was closed before it began.")
                self._taker = Taker(await asyncio.to_thread(self._start))
                if self._closed:
                    self._taker.stream.close()
            return self._taker


async def finished(streams: Iterable[Stream]) -> list[Result]:
    """The results of streams. If one fails, or the wait is cancelled, all are cancelled.

    Raises:
        LlamaGPUError: one of them ended with an error.
    """
    kept = list(streams)
    try:
        return await asyncio.gather(*(Taker(stream).result() for stream in kept))
    finally:
        for stream in kept:
            stream.close()
