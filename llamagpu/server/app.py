"""The ASGI application: routes, errors, and what guards them."""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp

from llamagpu.errors import LlamaGPUError
from llamagpu.server import schemas
from llamagpu.server.errors import (
    BAD_REQUEST,
    UNKNOWN_FIELD,
    ErrorBody,
    Kind,
    RequestError,
    body_of,
    headers_of,
    kind_of,
    kind_of_status,
)
from llamagpu.server.generation import Generation
from llamagpu.server.guard import Access, Doorway, Reception
from llamagpu.server.metrics import Metrics
from llamagpu.server.models import Models
from llamagpu.server.pages import add_pages
from llamagpu.server.routes import Information
from llamagpu.server.running import Disconnected
from llamagpu.server.vectors import Vectors
from llamagpu.version import __version__

_BODIES = (schemas.ChatBody, schemas.CompletionBody, schemas.EmbeddingsBody, schemas.RerankBody)
_FIELDS = frozenset(name for body in _BODIES for name in body.model_fields)
_ALTERNATIVE = re.compile(r"str|int|(list|dict)\[.*")  # how pydantic names the alternatives of a field's type


def make_app(models: Models, access: Access) -> ASGIApp:
    """The application that serves models."""
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody, "description": "An error."} for status in ("4XX", "5XX")
    }
    app = FastAPI(
        title="llamagpu", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False, responses=errors
    )
    metrics, router = Metrics(models), APIRouter()
    for part in (Generation(models, metrics), Vectors(models, metrics), Information(models, metrics)):
        part.add_to(router)
    pages = add_pages(router, models.names[0])
    app.include_router(router)
    app.add_exception_handler(LlamaGPUError, _failed)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Disconnected, _gone)
    app.add_exception_handler(Exception, _failed)  # it goes on to the doorway, which reports it
    inner: ASGIApp = Reception(app, access, {"/health", *pages})
    if access.origins:
        inner = CORSMiddleware(
            inner, allow_origins=access.origins, allow_methods=["GET", "POST"], allow_headers=["*"], max_age=600
        )
    return Doorway(inner, access, metrics)


async def _failed(_request: Request, error: Exception) -> Response:
    return JSONResponse(body_of(error, _FIELDS), kind_of(error).status, headers_of(error))


async def _invalid(request: Request, error: Exception) -> Response:
    """An error for the first field that is wrong; it does not repeat the field's value."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    first = found[0]
    if first["type"] == "json_invalid":
        return await _failed(request, RequestError(BAD_REQUEST, "The body is not JSON."))
    place = [part for part in first["loc"] if part not in ("body", "query", "path")]
    if not place:
        why = "Send Content-Type: application/json."
        return await _failed(request, RequestError(BAD_REQUEST, "The body is not a JSON object.", why))
    name = ".".join([str(place[0]), *(str(p) for p in place[1:] if not _ALTERNATIVE.fullmatch(str(p)))])
    if first["type"] == "extra_forbidden":
        what, kind = f"Unknown field {name[:200]}.", UNKNOWN_FIELD
    elif first["type"] == "missing":
        what, kind = f"{name} is missing.", BAD_REQUEST
    else:
        reasons = [e["msg"] for e in found if e["loc"][:2] == first["loc"][:2]]
        what, kind = f"{name} is not valid: {'; or: '.join(dict.fromkeys(reasons))}.", BAD_REQUEST
    return await _failed(request, RequestError(kind, what, param=name[:200]))


async def _http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses: routes, methods, bodies that cannot be read."""
    assert isinstance(error, HTTPException)
    kind: Kind = kind_of_status(error.status_code)
    what = {404: f"There is no {request.url.path[:200]}.", 405: f"{request.method} is not allowed here."}
    reason = RequestError(kind, what.get(error.status_code, f"The request cannot be read: {error.detail}."))
    return JSONResponse(body_of(reason), kind.status, {**(error.headers or {}), **headers_of(reason)})


async def _gone(_request: Request, _error: Exception) -> Response:
    """Nobody reads this."""
    return Response(status_code=499)
