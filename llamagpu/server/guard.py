"""What every request passes before it is looked at: its host and origin, its key, and the bound of its body.

A page of another site can send requests to this machine, and by DNS rebinding even from its own origin. So only known
hosts are answered, and only the server's own origin or those that were allowed.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamagpu.errors import UsageError
from llamagpu.server.errors import (
    BAD_KEY,
    FORBIDDEN,
    TOO_LARGE,
    TOO_SLOW,
    RequestError,
    body_of,
    headers_of,
    kind_of,
    report,
)

if TYPE_CHECKING:
    from llamagpu.server.metrics import Metrics

_LOCAL = ("localhost", "127.0.0.1", "::1")
_ANY = ("0.0.0.0", "::", "")


@dataclass(frozen=True)
class Access:
    """Who may use the server.

    Attributes:
        host: the address that it is bound to.
        keys: one of them must come with each request; none asks for no key.
        origins: of pages elsewhere that may use it; "*" is all.
        hosts: further names under which it is reached.
        body_bytes: the most of a body.
        body_seconds: in which a body must come.
    """

    host: str = "127.0.0.1"
    keys: Sequence[str] = ()
    origins: Sequence[str] = ()
    hosts: Sequence[str] = ()
    body_bytes: int = 8_000_000
    body_seconds: float = 60.0

    def check(self) -> None:
        """Refuse an address that others can reach without a key.

        Raises:
            UsageError: it is one, or a key cannot be sent.
        """
        if not all(key.isascii() and key.isprintable() and key.strip() == key and key for key in self.keys):
            raise UsageError("An API key is not printable ASCII text.", "It is sent in a header.")
        if self.host not in _LOCAL and not self.keys:
            raise UsageError(
                f"The address {self.host} can be reached from other machines.",
                "Without a key anyone there could use the models.",
                "Give --api-key or LLAMAGPU_API_KEY, or stay at 127.0.0.1.",
            )

    def knows_host(self, header: str) -> bool:
        """Whether a Host header names this server."""
        name = host_name(header)
        if name in {*_LOCAL, self.host.lower(), *(h.lower() for h in self.hosts)}:
            return True
        # A name that is an address cannot have been rebound.
        return self.host in _ANY and (_is_address(name) or name == socket.gethostname().lower())

    def knows_origin(self, origin: str, host: str) -> bool:
        """Whether an Origin header is the server's own or was allowed."""
        own = (f"http://{host}", f"https://{host}")
        return origin in own or origin in self.origins or "*" in self.origins

    def knows_key(self, header: str) -> bool:
        """Whether an Authorization header has a key. The time it takes tells nothing of the keys."""
        scheme, _, given = header.partition(" ")
        found = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in self.keys]
        return scheme.lower() == "bearer" and any(found)


def host_name(header: str) -> str:
    """The name in a Host header, without its port."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def refuse(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error."""
    response = JSONResponse(body_of(error), kind_of(error).status, headers_of(error))
    await response(scope, receive, send)


class Doorway:
    """Checks host and origin, counts responses, and catches what nobody expected. The outermost application."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics):
        self._app, self._access, self._metrics = app, access, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # a websocket is closed
        begun = False

        async def counted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self._metrics.responded(getattr(scope.get("route"), "path", "other"), message["status"])
            await send(message)

        try:
            self._check(Headers(scope=scope))
            await self._app(scope, receive, counted)
        except RequestError as e:
            await refuse(e, scope, receive, counted)
        except Exception as e:
            report(e)
            if not begun:
                await refuse(e, scope, receive, counted)

    def _check(self, headers: Headers) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._access.knows_host(host):
            raise RequestError(FORBIDDEN, "The Host header does not name this server.", "", "See --allow-host.")
        if origin is not None and not self._access.knows_origin(origin, host):
            raise RequestError(FORBIDDEN, "Pages of another origin may not use this server.", "", "See --allow-origin.")


class Reception:
    """Checks the key, and reads the body within its bounds.

    Args:
        open_paths: paths that need no key.
    """

    def __init__(self, app: ASGIApp, access: Access, open_paths: Collection[str]):
        self._app, self._access, self._open = app, access, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            keyless = not self._access.keys or scope["path"] in self._open
            if not keyless and not self._access.knows_key(headers.get("authorization", "")):
                raise RequestError(BAD_KEY, "The API key is missing or wrong.", "", "Send Authorization: Bearer KEY.")
            body = await self._body(headers, receive)
        except RequestError as e:
            await refuse(e, scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replayed(body, receive), send)

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body; None if the client went before its end."""
        most, length = self._access.body_bytes, headers.get("content-length", "")
        error = RequestError(TOO_LARGE, f"The body has more than {most:,} bytes.", "", "Send less at once.")
        if length.isdecimal() and (len(length) > 18 or int(length) > most):
            raise error
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._access.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise error
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise RequestError(TOO_SLOW, "The body did not come in time.") from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives a body that was read, and then what comes after it."""
    message: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def replay() -> Message:
        nonlocal message
        if message is None:
            return await receive()
        given, message = message, None
        return given

    return replay
