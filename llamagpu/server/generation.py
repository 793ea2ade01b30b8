"""/v1/chat/completions and /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from llamagpu.engine import Result
from llamagpu.engine.logprobs import TextToken
from llamagpu.engine.params import choice_settings
from llamagpu.engine.request import Reuse
from llamagpu.errors import LlamaGPUError
from llamagpu.server.answers import DONE, WAITING, Chat, Completion, Shape, event, usage
from llamagpu.server.errors import about, body_of, report
from llamagpu.server.metrics import Metrics
from llamagpu.server.models import Models, Served
from llamagpu.server.running import Piece, run, together, while_connected
from llamagpu.server.schemas import ChatBody, CompletionBody, Sampled
from llamagpu.text.tools import ToolUse

_BEAT = 15.0  # seconds of silence after which a stream says that it is alive
# What the OpenAPI document tells of streams.
_STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@dataclass(frozen=True)
class _Prompts:
    """The ids of a request's prompts, and how their answers use tools."""

    ids: list[list[int]]
    tools: ToolUse | None = None


@dataclass
class _Text:
    """A text of an answer, as it grows."""

    tokens: list[TextToken] = field(default_factory=list)
    result: Result | None = None

    def add(self, piece: Piece) -> None:
        self.tokens += piece.tokens
        self.result = piece.result


class Generation:
    """The endpoints that generate text."""

    def __init__(self, models: Models, metrics: Metrics):
        self._models, self._metrics = models, metrics

    def add_to(self, router: APIRouter) -> None:
        """Add the endpoints."""
        for path, endpoint in (("/v1/chat/completions", self.chat), ("/v1/completions", self.complete)):
            router.add_api_route(path, endpoint, methods=["POST"], response_model=None, responses=_STREAMS)

    async def chat(self, request: Request, body: ChatBody) -> Response:
        """Answer a conversation."""

        async def prompts(served: Served) -> _Prompts:
            tools = await served.tool_use(body.tool_options())
            told = {} if tools is None else {"tools": tools.tools}
            return _Prompts([await served.chat_ids(body.messages, body.template() | told)], tools)

        return await self._answer(request, body, Chat, "messages", prompts)

    async def complete(self, request: Request, body: CompletionBody) -> Response:
        """Continue prompts."""

        async def prompts(served: Served) -> _Prompts:
            return _Prompts([await served.ids(prompt) for prompt in body.prompts])

        return await self._answer(request, body, Completion, "prompt", prompts)

    async def _answer(
        self,
        request: Request,
        body: Sampled,
        kind: type[Shape],
        field: str,
        prompts_of: Callable[[Served], Awaitable[_Prompts]],
    ) -> Response:
        body.check()
        served = self._models.get(body.model)
        settings = await asyncio.to_thread(lambda: served.checked(body.options()))
        with ExitStack() as stack:
            with about("n" if body.choices > 1 else field):
                admission = stack.enter_context(served.gate.admit(body.texts))
            with about(field):
                prompts = await prompts_of(served)
            shape = kind(served.name, body.wanted)
            reuse: Reuse = "any" if kind is Chat else "exact"
            runs = [
                run(
                    served,
                    admission,
                    ids,
                    choice_settings(settings, i),
                    self._metrics,
                    reuse=reuse,
                    tools=prompts.tools,
                )
                for ids in prompts.ids
                for i in range(body.choices)
            ]
            self._metrics.requested(served.name, body.choices)
            if body.stream:
                return _Streamed(_events(runs, shape, body, prompts.ids), stack.pop_all())
            texts = await while_connected(request, _collected(runs))
        return _whole(texts, shape, body)


class _Streamed(StreamingResponse):
    """A response of events. However it ends, also before it begins, its generations are cancelled and ``stack`` is
    closed."""

    def __init__(self, parts: AsyncGenerator[str, None], stack: ExitStack):
        super().__init__(parts, media_type="text/event-stream", headers=_HEADERS)
        self._parts, self._stack = parts, stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        with self._stack:
            async with aclosing(self._parts):
                await super().__call__(scope, receive, send)


def _whole(texts: Sequence[_Text], shape: Shape, body: Sampled) -> Response:
    """The answer with all choices."""
    results = [text.result for text in texts if text.result is not None]
    choices = [
        shape.choice(i, result, text.tokens) | _ids(body, result.token_ids, result.prompt_token_ids)
        for i, (text, result) in enumerate(zip(texts, results, strict=True))
    ]
    return JSONResponse(shape.answer(choices, usage(results, body.choices)))


def _ids(body: Sampled, new: Sequence[int], prompt: Sequence[int] | None) -> dict[str, Any]:
    """New ids for a choice and, where it begins, those of its prompt, if the request wants them."""
    if not body.return_token_ids:
        return {}
    return {"token_ids": list(new)} | ({} if prompt is None else {"prompt_token_ids": list(prompt)})


async def _collected(runs: Sequence[AsyncIterator[Piece]]) -> list[_Text]:
    """The whole texts."""
    texts = [_Text() for _ in runs]
    async for found in together(runs, _BEAT):
        if found is not None:
            texts[found[0]].add(found[1])
    return texts


async def _events(
    runs: Sequence[AsyncIterator[Piece]], shape: Shape, body: Sampled, prompts: Sequence[Sequence[int]]
) -> AsyncGenerator[str, None]:
    """The events of a streamed answer. An error that comes after its beginning is an event of its own."""
    results: dict[int, Result] = {}
    begun: set[int] = set()
    more = {"usage": None} if body.include_usage else {}
    pieces = together(runs, _BEAT)
    try:
        for i in range(len(runs)):
            if (first := shape.first(i)) is not None:
                yield event(shape.chunk([first], **more))
        async for found in pieces:
            if found is None:
                yield WAITING
                continue
            i, piece = found
            ids = _ids(body, piece.ids, None if i in begun else prompts[i // body.choices])
            begun.add(i)
            if piece.text or piece.tokens or ids:
                yield event(shape.chunk([shape.delta(i, piece.text, piece.tokens) | ids], **more))
            if piece.calls:
                yield event(shape.chunk([shape.calls(i, piece.calls)], **more))
            if piece.result is not None:
                results[i] = piece.result
                yield event(shape.chunk([shape.delta(i, "", (), piece.result.finish_reason)], **more))
        if body.include_usage:
            ordered = [results[i] for i in range(len(runs))]
            yield event(shape.chunk([], usage=usage(ordered, body.choices)))
        yield DONE
    except Exception as e:
        if not isinstance(e, LlamaGPUError):
            report(e)
        yield event(body_of(e))
    finally:
        await pieces.aclose()
