"""``AsyncLLM``: a model that generates text for programs with an event loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

import numpy as np
import numpy.typing as npt

from llamagpu.engine.arguments import items
from llamagpu.engine.async_stream import AsyncStream, finished
from llamagpu.engine.batch import Item
from llamagpu.engine.chat_options import ChatOptions, RunOptions, takes_chat_options, takes_run_options
from llamagpu.engine.llm import LLM
from llamagpu.engine.params import GenerateOptions, takes_options
from llamagpu.engine.prompts import Prompt
from llamagpu.engine.request import Reuse
from llamagpu.engine.result import Result
from llamagpu.engine.tools_loop import Rounds, RunResult, run_async
from llamagpu.errors import UsageError
from llamagpu.text import Message

T = TypeVar("T")
_WAITING_THREADS = 4  # of calls that wait for vectors or logits


class AsyncLLM:
    """An ``LLM`` whose methods are coroutines, for asyncio. Loading, tokenizing and waiting never block the event loop.

    ``async with AsyncLLM(...) as llm`` loads the model and frees it at the end; ``await AsyncLLM.load(...)`` loads it,
    and ``aclose`` frees it. ``AsyncLLM(llm)`` uses an open ``LLM`` at once, and leaves it open.

    Calls of all tasks run together, and no thread waits for a text. Cancelling a task cancels what it waits for. Any
    event loop may use the same object.

    Args:
        model, options: as ``LLM`` takes them.

    Raises:
        TypeError: an unknown keyword.

    >>> async with AsyncLLM() as llm:
    ...     async for piece in llm.stream("Once upon a time"):
    ...         print(piece, end="")
    """

    __signature__ = inspect.signature(LLM)

    def __init__(self, model: str | Path | LLM | None = None, **options: Any):
        self._llm: LLM | None = None
        self._make: Callable[[], LLM] | None = None
        if isinstance(model, LLM):
            if options:
                raise UsageError(f"An open LLM does not take {min(options)}.", "", "Give options where it is loaded.")
            self._llm = model
        else:
            inspect.signature(LLM).bind(model, **options)
            self._make = partial(LLM, model, **options)
        self._waiting = ThreadPoolExecutor(_WAITING_THREADS, "llamagpu-wait")

    def __repr__(self) -> str:
        return f"<AsyncLLM {'not loaded' if self._llm is None else self._llm!r}>"

    @classmethod
    async def load(cls, model: str | Path | LLM | None = None, **options: Any) -> Self:
        """A loaded model; ``LLM`` describes arguments and errors."""
        return await cls(model, **options).__aenter__()

    async def __aenter__(self) -> Self:
        if self._llm is None and self._make is not None:
            self._llm = await _made(self._make)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Free the model's memory, unless it was given as an open ``LLM``. Running generations end with an error;
        closing twice is harmless."""
        if self._llm is not None and self._make is not None:
            await asyncio.to_thread(self._llm.close)

    @property
    def llm(self) -> LLM:
        """The model, with its facts: ``config``, ``context``, ``memory`` and so on.

        Raises:
            UsageError: it is not loaded.
        """
        if self._llm is None:
            hint = "Use ``async with AsyncLLM(...) as llm``, or ``llm = await AsyncLLM.load(...)``."
            raise UsageError("The model is not loaded.", "", hint)
        return self._llm

    @overload
    async def generate(  # type: ignore[overload-overlap]
        self, prompt: Item, *, n: None = None, reuse: Reuse = "exact", **options: Unpack[GenerateOptions]
    ) -> Result: ...
    @overload
    async def generate(
        self, prompt: Sequence[Item], *, n: None = None, reuse: Reuse = "exact", **options: Unpack[GenerateOptions]
    ) -> list[Result]: ...
    @overload
    async def generate(  # type: ignore[overload-overlap]
        self, prompt: Item, *, n: int, reuse: Reuse = "exact", **options: Unpack[GenerateOptions]
    ) -> list[Result]: ...
    @overload
    async def generate(
        self, prompt: Sequence[Item], *, n: int, reuse: Reuse = "exact", **options: Unpack[GenerateOptions]
    ) -> list[list[Result]]: ...

    @takes_options
    async def generate(
        self,
        prompt: Item | Sequence[Item],
        *,
        n: int | None = None,
        reuse: Reuse = "exact",
        **options: Unpack[GenerateOptions],
    ) -> Any:
        """See ``LLM.generate``. If it is cancelled, or one of its prompts fails, all are cancelled."""
        batch = await asyncio.to_thread(self.llm.begin, prompt, n=n, reuse=reuse, **options)
        return batch.call.form(await finished(batch.streams))

    @takes_options
    def stream(self, prompt: Prompt, *, reuse: Reuse = "exact", **options: Unpack[GenerateOptions]) -> AsyncStream:
        """See ``LLM.stream``; not a coroutine, but an asynchronous iterator. Arguments are checked when it begins."""
        return AsyncStream(partial(self.llm.stream, prompt, reuse=reuse, **options))

    @overload
    async def chat(self, messages: Iterable[Message], *, n: None = None, **options: Unpack[ChatOptions]) -> Result: ...
    @overload
    async def chat(self, messages: Iterable[Message], *, n: int, **options: Unpack[ChatOptions]) -> list[Result]: ...

    @takes_chat_options
    async def chat(self, messages: Iterable[Message], *, n: int | None = None, **options: Unpack[ChatOptions]) -> Any:
        """See ``LLM.chat``. If it is cancelled, the answer is, too."""
        batch = await asyncio.to_thread(self.llm.begin_chat, messages, n=n, **options)
        return batch.call.form(await finished(batch.streams))

    @takes_chat_options
    def chat_stream(self, messages: Iterable[Message], **options: Unpack[ChatOptions]) -> AsyncStream:
        """See ``LLM.chat_stream``, and ``stream``."""
        return AsyncStream(partial(self.llm.chat_stream, messages, **options))

    @takes_run_options
    async def run(
        self,
        messages: Iterable[Message],
        tools: Sequence[Callable[..., Any]],
        *,
        max_rounds: int = 10,
        **options: Unpack[RunOptions],
    ) -> RunResult:
        """See ``LLM.run``. Coroutine functions are awaited, others run on a thread of the event loop's."""
        return await run_async(self.chat, Rounds(messages, tools, max_rounds, {**options}))

    async def embed(self, sentences: str | Iterable[str], batch_size: int = 32, **options: Any) -> Any:
        """See ``LLM.embed``; any iterable gives an array. Cancelling it does not stop the work on these texts."""
        kept = sentences if isinstance(sentences, (str, np.ndarray)) else items(sentences, "texts")
        return await self._waited(partial(self.llm.embed, kept, batch_size, **options))

    async def logits(self, ids: Iterable[int], *, first: int = 0, reuse: Reuse = "none") -> npt.NDArray[np.float32]:
        """See ``LLM.logits``; cancelling it does not stop the work."""
        return await self._waited(partial(self.llm.logits, ids, first=first, reuse=reuse))

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """See ``LLM.tokenize``."""
        return await asyncio.to_thread(self.llm.tokenize, text, add_special_tokens=add_special_tokens)

    async def detokenize(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """See ``LLM.detokenize``."""
        return await asyncio.to_thread(self.llm.detokenize, ids, skip_special_tokens=skip_special_tokens)

    async def apply_chat_template(self, messages: Iterable[Message], **options: Any) -> list[int]:
        """See ``LLM.apply_chat_template``."""
        return await asyncio.to_thread(self.llm.apply_chat_template, messages, **options)

    async def _waited(self, work: Callable[[], T]) -> T:
        """The result of work that waits for the device, on a thread of its own kind: those of the event loop stay free
        to start generations."""
        return await asyncio.get_running_loop().run_in_executor(self._waiting, work)


async def _made(make: Callable[[], LLM]) -> LLM:
    """A model that is loaded on a thread. If the wait is cancelled, the model is closed as soon as it is loaded."""
    pool = ThreadPoolExecutor(1, "llamagpu-load")
    loading = pool.submit(make)
    pool.shutdown(wait=False)
    try:
        return await asyncio.wrap_future(loading)
    except asyncio.CancelledError:
        loading.add_done_callback(_unwanted)
        raise


def _unwanted(loading: Future[LLM]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        loading.result().close()
