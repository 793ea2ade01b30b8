"""What is told of the server and its models, and the tokenizer."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from llamagpu.engine import LLM
from llamagpu.errors import DeviceLostError
from llamagpu.server.errors import BAD_REQUEST, RequestError, about
from llamagpu.server.metrics import Metrics
from llamagpu.server.models import DOES, Models, Served
from llamagpu.server.schemas import DetokenizeBody, TokenizeBody

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Information:
    """The endpoints that only tell."""

    def __init__(self, models: Models, metrics: Metrics):
        self._models, self._metrics = models, metrics

    def add_to(self, router: APIRouter) -> None:
        """Add the endpoints."""
        add = router.add_api_route
        add("/health", self.health, methods=["GET"], response_model=None)
        add("/metrics", self.metrics, methods=["GET"], response_model=None, response_class=PlainTextResponse)
        add("/v1/models", self.models, methods=["GET"], response_model=None)
        add("/v1/models/{name:path}", self.model, methods=["GET"], response_model=None)
        add("/tokenize", self.tokenize, methods=["POST"], response_model=None)
        add("/detokenize", self.detokenize, methods=["POST"], response_model=None)

    async def health(self) -> Response:
        """Whether requests can be answered: 503 while the models are being loaded, or after a device was lost and did
        not come back."""
        self._models.check_loaded()
        lost = [served.name for served in self._models.bases if served.lost]
        if lost:
            raise DeviceLostError(f"The device of {', '.join(lost)} was lost.", "It did not come back.", "Start again.")
        return JSONResponse({"status": "ok"})

    async def metrics(self) -> Response:
        """What Prometheus reads."""
        return Response(self._metrics.text(), headers={"Content-Type": _METRICS_TYPE})

    async def models(self) -> Response:
        """All models."""
        self._models.check_loaded()
        data = [_entry(served) for served in self._models.served.values()]
        return JSONResponse({"object": "list", "data": data})

    async def model(self, name: str) -> Response:
        """One model."""
        return JSONResponse(_entry(self._models.get(name)))

    async def tokenize(self, body: TokenizeBody) -> Response:
        """The ids of a text or of a conversation, in vLLM's shape."""
        body.check()
        served = self._models.get(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise RequestError(BAD_REQUEST, "The request needs a prompt or messages.", param="prompt")
        if body.messages is not None:
            with about("messages"):
                ids = await served.chat_ids(body.messages, {})
        else:
            ids = await asyncio.to_thread(
                served.llm.tokenize, body.prompt or "", add_special_tokens=body.add_special_tokens
            )
        return JSONResponse({"count": len(ids), "max_model_len": served.llm.context, "tokens": ids})

    async def detokenize(self, body: DetokenizeBody) -> Response:
        """The text of ids."""
        body.check()
        llm = self._models.get(body.model).llm
        text = await asyncio.to_thread(llm.detokenize, body.tokens, skip_special_tokens=body.skip_special_tokens)
        return JSONResponse({"prompt": text})


def _entry(served: Served) -> dict[str, Any]:
    """A model or adapter in OpenAI's shape, with ``parent`` and ``max_model_len`` as vLLM has them, and what a chat
    page shows. ``root`` is the base's name, because no path is told."""
    model, base = served.model, served.base or served
    entry: dict[str, Any] = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "llamagpu",
        "root": base.name,
        "parent": None if served.base is None else base.name,
    }
    more = {"does": DOES[type(model)], "adapter": str(model.device.adapter), "dtype": model.dtype}
    if isinstance(model, LLM):
        entry["max_model_len"] = model.context
        more |= {
            "vocab_size": model.config.vocab_size,
            "has_chat": bool(model.chat_templates),
            "generation": model.chat_settings,
            "parameters": model.layout.parameters,
            "bytes": model.sizes.by_purpose(),
        }
    else:
        entry["max_model_len"] = model.max_length
    return entry | {"llamagpu": more}
