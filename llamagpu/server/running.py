"""Generations on the event loop: pieces of text as they come, of several sequences at once.

No thread waits for a generation. The engine's thread tells the loop when there is something to take.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from llamagpu.engine import Taker
from llamagpu.engine.logprobs import TextToken
from llamagpu.engine.request import Reuse

if TYPE_CHECKING:
    from starlette.requests import Request

    from llamagpu.engine import Result, Stream
    from llamagpu.server.gate import Admission
    from llamagpu.server.metrics import Metrics
    from llamagpu.server.models import Served
    from llamagpu.text.tools import ToolUse

T = TypeVar("T")


class Disconnected(Exception):
    """The client has gone; nobody reads an answer."""


@dataclass(frozen=True)
class Piece:
    """A part of a text: characters, and the tokens that begin in them, if their log-probabilities are wanted. ``ids``
    has all tokens that came, ``calls`` the deltas of calls of tools. The last piece has the result."""

    text: str
    tokens: list[TextToken]
    ids: list[int]
    result: Result | None = None
    calls: Sequence[dict[str, Any]] = ()


async def run(
    served: Served,
    admission: Admission,
    ids: Sequence[int],
    settings: Mapping[str, Any],
    metrics: Metrics,
    *,
    reuse: Reuse,
    tools: ToolUse | None = None,
) -> AsyncIterator[Piece]:
    """Wait for a place, and generate. Closing the iterator cancels the generation.

    Raises:
        LlamaGPUError: the generation ended with an error.
    """
    begin = time.monotonic()
    async with admission.place(), served.watched():
        metrics.started(served.name, len(ids), time.monotonic() - begin)
        taker = Taker(await asyncio.to_thread(served.start, ids, settings, reuse=reuse, tools=tools))
        stream = taker.stream
        seen, told, characters, called = 0, 0, 0, 0
        try:
            while not stream.done:
                text = await taker.take()
                if stream.tokens and not seen:
                    metrics.first(served.name, time.monotonic() - begin)
                made = [token.id for token in stream.tokens[seen:]]
                metrics.tokens(served.name, len(made))
                seen, characters = len(stream.tokens), characters + len(text)
                until = _begun(stream, told, characters)
                tokens, told = stream.logprobs[told:until], until
                calls, called = stream.call_deltas[called:], len(stream.call_deltas)
                if stream.done:
                    metrics.finished(served.name, stream.result, time.monotonic() - begin)
                if made or stream.done:
                    yield Piece(text, tokens, made, stream.result if stream.done else None, calls)
        finally:
            stream.close()


def _begun(stream: Stream, told: int, characters: int) -> int:
    """The tokens that begin in the first characters of a text; all of the text at its end."""
    tokens = stream.logprobs
    while told < len(tokens) and (offset := tokens[told].offset) is not None and (stream.done or offset < characters):
        told += 1
    return told


async def together(runs: Sequence[AsyncIterator[Piece]], beat: float) -> AsyncGenerator[tuple[int, Piece] | None, None]:
    """The pieces of several generations as they come, each with its number; None after every ``beat`` seconds without
    one. Closing the iterator cancels all.

    Raises:
        LlamaGPUError: one of them ended with an error.
    """
    queue: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue()

    async def pump(number: int, pieces: AsyncIterator[Piece]) -> None:
        try:
            async for piece in pieces:
                queue.put_nowait((number, piece))
        except Exception as e:
            queue.put_nowait(e)

    tasks = [asyncio.create_task(pump(i, pieces)) for i, pieces in enumerate(runs)]
    try:
        left = len(tasks)
        while left:
            try:
                item = await asyncio.wait_for(queue.get(), beat)
            except TimeoutError:
                yield None
                continue
            if isinstance(item, Exception):
                raise item
            left -= item[1].result is not None
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of work that is cancelled if the client goes.

    Raises:
        Disconnected: it has gone.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    doing, going = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait((doing, going), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise Disconnected
        return doing.result()
    finally:
        for task in (doing, going):
            task.cancel()
        await asyncio.gather(doing, going, return_exceptions=True)
