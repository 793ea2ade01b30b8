"""Errors in OpenAI's shape, and the one table from this project's errors to HTTP."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from llamagpu.errors import BusyError, ContextFullError, DeviceLostError, LlamaGPUError, OutOfMemoryError, UsageError

log = logging.getLogger("llamagpu")
INVALID = "invalid_request_error"
SERVER = "server_error"


@dataclass(frozen=True)
class Kind:
    """What HTTP says of an error: its status, and OpenAI's type and code."""

    status: int
    type: str
    code: str | None = None


class ErrorDetail(BaseModel):
    """What went wrong, in OpenAI's shape. ``param`` is the field, ``code`` a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


class RequestError(LlamaGPUError):
    """A request that the server refuses.

    Attributes:
        param: the field that is wrong.
        retry_after: seconds after which the request may succeed.
    """

    def __init__(
        self,
        kind: Kind,
        what: str,
        why: str = "",
        hint: str = "",
        *,
        param: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(what, why, hint)
        self.kind, self.param, self.retry_after = kind, param, retry_after


BAD_REQUEST = Kind(400, INVALID)
UNSUPPORTED = Kind(400, INVALID, "unsupported_parameter")
UNKNOWN_FIELD = Kind(400, INVALID, "unknown_parameter")
BAD_KEY = Kind(401, "authentication_error", "invalid_api_key")
FORBIDDEN = Kind(403, "permission_error", "forbidden")
NO_MODEL = Kind(404, INVALID, "model_not_found")
NO_ROUTE = Kind(404, INVALID, "not_found")
BAD_METHOD = Kind(405, INVALID, "method_not_allowed")
TOO_SLOW = Kind(408, INVALID, "request_timeout")
TOO_LARGE = Kind(413, INVALID, "request_too_large")
CROWDED = Kind(503, SERVER, "too_many_connections")
LOADING = Kind(503, SERVER, "loading")
FAILED = Kind(500, SERVER)

# The first class that an error belongs to decides; errors of other classes are ``FAILED``.
_KINDS: tuple[tuple[type[Exception], Kind], ...] = (
    (ContextFullError, Kind(400, INVALID, "context_length_exceeded")),
    (UsageError, BAD_REQUEST),
    (BusyError, Kind(429, "rate_limit_error", "queue_full")),
    (OutOfMemoryError, Kind(503, SERVER, "out_of_memory")),
    (DeviceLostError, Kind(503, SERVER, "device_lost")),
)
_STATUSES = {401: BAD_KEY, 403: FORBIDDEN, 404: NO_ROUTE, 405: BAD_METHOD, 413: TOO_LARGE}


@contextmanager
def about(param: str) -> Iterator[None]:
    """Name the field that the engine's errors in the block are about."""
    try:
        yield
    except UsageError as e:
        raise RequestError(kind_of(e), e.what, e.why, e.hint, param=param) from None


def report(error: Exception) -> None:
    """Log an error that nobody expected, without its text, which may hold a prompt."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("something unexpected failed: %s\n%s", type(error).__name__, frames)


def kind_of(error: BaseException) -> Kind:
    """The table: what HTTP says of an error."""
    if isinstance(error, RequestError):
        return error.kind
    return next((kind for cls, kind in _KINDS if isinstance(error, cls)), FAILED)


def kind_of_status(status: int) -> Kind:
    """What is said of a status that the web framework chose."""
    return _STATUSES.get(status, Kind(status, INVALID if status < 500 else SERVER))


def body_of(error: BaseException, fields: Collection[str] = ()) -> dict[str, Any]:
    """The JSON of an error. Of an unexpected one it tells the class alone, because its text may hold a prompt.

    Args:
        fields: those of the request, among which the one that the error is about is found.
    """
    kind = kind_of(error)
    message = f"Something unexpected failed: {type(error).__name__}."
    if isinstance(error, LlamaGPUError):
        message = " ".join(part for part in (error.what, error.why, error.hint) if part)
    param = error.param if isinstance(error, RequestError) else _param(error, fields)
    return {"error": {"message": message, "type": kind.type, "param": param, "code": kind.code}}


def _param(error: BaseException, fields: Collection[str]) -> str | None:
    """The field with which an error of the engine begins ("temperature is -1.")."""
    found = re.match(r"\w+", error.what) if isinstance(error, UsageError) else None
    return found[0] if found and found[0] in fields else None


def headers_of(error: BaseException) -> dict[str, str]:
    """The headers of an error's response."""
    if kind_of(error).status == 401:
        return {"WWW-Authenticate": "Bearer"}
    wait = error.retry_after if isinstance(error, (RequestError, BusyError)) else None
    return {} if wait is None else {"Retry-After": str(wait)}
