"""/v1/embeddings and /v1/rerank."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from starlette.requests import Request

from llamagpu.model.packs import Floats
from llamagpu.server.errors import BAD_REQUEST, RequestError
from llamagpu.server.metrics import Metrics
from llamagpu.server.models import Models, Served
from llamagpu.server.running import while_connected
from llamagpu.server.schemas import EmbeddingsBody, RerankBody

T = TypeVar("T")
_THREADS = 32  # apart from those that tokenize prompts, which must not wait for the others
_AT_ONCE = 256  # pairs between two looks at whether the client is there


class _Gone(Exception):
    """Nobody waits for the work any more."""


class Vectors:
    """The endpoints that embed and rank."""

    def __init__(self, models: Models, metrics: Metrics):
        self._models, self._metrics = models, metrics
        self._threads = ThreadPoolExecutor(_THREADS, "llamagpu-vectors")

    def add_to(self, router: APIRouter) -> None:
        """Add the endpoints."""
        router.add_api_route("/v1/embeddings", self.embed, methods=["POST"], response_model=None)
        for path in ("/v1/rerank", "/v2/rerank", "/rerank"):  # Jina's, Cohere's, and without a version
            router.add_api_route(path, self.rerank, methods=["POST"], response_model=None)

    async def embed(self, request: Request, body: EmbeddingsBody) -> Response:
        """The vectors of texts."""
        body.check()
        served = self._models.get(body.model)
        texts = [body.input] if isinstance(body.input, str) else body.input
        if not texts or not all(texts):
            raise RequestError(BAD_REQUEST, "A text of input is empty.", param="input")
        if body.dimensions is not None and body.dimensions < 1:
            raise RequestError(BAD_REQUEST, f"dimensions is {body.dimensions}.", param="dimensions")
        embedder = served.embedder

        def work(stop: threading.Event) -> tuple[bytes, int]:
            vectors = [np.asarray(v, np.float32) for v in served.embed(_until(stop, texts), body.dimensions)]
            tokens = sum(len(embedder.tokenize(text)) for text in texts)
            return _embeddings(vectors, served.name, tokens, body), tokens

        data, tokens = await while_connected(request, self._run(served, work))
        self._metrics.embedded(served.name, tokens)
        return Response(data, media_type="application/json")

    async def rerank(self, request: Request, body: RerankBody) -> Response:
        """Documents by their score for a query, the best first."""
        body.check()
        served = self._models.get(body.model)
        documents = [_text(document, i) for i, document in enumerate(body.documents)]
        if not documents:
            raise RequestError(BAD_REQUEST, "There are no documents.", param="documents")
        if body.top_n is not None and body.top_n < 1:
            raise RequestError(BAD_REQUEST, f"top_n is {body.top_n}.", "It must be at least 1.", param="top_n")
        _ = served.ranker  # refuses other models

        def work(stop: threading.Event) -> list[float]:
            out: list[float] = []
            for first in range(0, len(documents), _AT_ONCE):
                part = list(_until(stop, documents[first : first + _AT_ONCE]))
                out += served.scores([(body.query, text) for text in part])
            return out

        scores = await while_connected(request, self._run(served, work))
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: body.top_n]
        results: list[dict[str, Any]] = [{"index": i, "relevance_score": scores[i]} for i in order]
        if body.return_documents:
            results = [found | {"document": {"text": documents[i]}} for found, i in zip(results, order, strict=True)]
        return JSONResponse({"model": served.name, "object": "list", "results": results})

    async def _run(self, served: Served, work: Callable[[threading.Event], T]) -> T:
        """Wait for a place, and work on a thread until it is done, or is told that nobody waits."""
        stop = threading.Event()
        with served.gate.admit() as admission:
            async with admission.place(), served.watched():
                try:
                    return await asyncio.get_running_loop().run_in_executor(self._threads, work, stop)
                finally:
                    stop.set()


def _embeddings(vectors: Sequence[Floats], model: str, tokens: int, body: EmbeddingsBody) -> bytes:
    """The JSON of an answer, whose numbers take too long for the event loop.

    Raises:
        RequestError: the vectors are too short for what was asked.
    """
    wanted, most = body.dimensions, len(vectors[0])
    if wanted is not None and most < wanted:
        what = f"dimensions is {wanted}."
        raise RequestError(BAD_REQUEST, what, f"The model's vectors have {most}.", param="dimensions")
    base = body.encoding_format == "base64"
    coded = [base64.b64encode(v.tobytes()).decode() if base else v.tolist() for v in vectors]
    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(coded)]
    used = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json.dumps({"object": "list", "data": data, "model": model, "usage": used}).encode()


def _until(stop: threading.Event, texts: Sequence[str]) -> Iterator[str]:
    """The texts, until nobody waits."""
    for text in texts:
        if stop.is_set():
            raise _Gone
        yield text


def _text(document: str | dict[str, Any], index: int) -> str:
    """The text of a document: itself, or its field ``text``."""
    text = document if isinstance(document, str) else document.get("text")
    if not isinstance(text, str):
        raise RequestError(BAD_REQUEST, f"Document {index} has no text.", param="documents")
    return text
