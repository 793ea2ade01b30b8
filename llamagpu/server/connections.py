"""Connections: how many there may be, and how long a client may keep one without using it.

A client that sends nothing, or reads nothing, costs a connection. uvicorn waits for such clients for ever.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from llamagpu.server.errors import CROWDED, RequestError, body_of

if sys.platform != "win32":
    import resource

HEADER_SECONDS = 20.0  # for the head of a connection's request
STALL_SECONDS = 60.0  # for a client to read something of what waits for it
_SPARE_FILES = 256  # for models, processes and the page
_RETRY_AFTER = 2
_PART = 16_384  # bytes


class Connections:
    """The open connections of a server.

    Args:
        most: the most of them. A further one takes the place of the oldest whose client has not sent its whole
            request, or has its answer; if all others are being answered, it is refused.
    """

    def __init__(self, most: int):
        self._most = most
        self._open: dict[Connection, None] = {}  # the oldest first
        _allow_files(most + _SPARE_FILES)

    def protocol(self, *args: Any, **kwargs: Any) -> Connection:
        """What uvicorn makes of a new connection."""
        return Connection(*args, connections=self, **kwargs)

    def enter(self, connection: Connection) -> bool:
        """Note a new connection. Returns whether there is room for it."""
        if len(self._open) >= self._most:
            idle = next((c for c in self._open if c.idle), None)
            if idle is None:
                return False
            self.leave(idle)
            idle.transport.abort()
        self._open[connection] = None
        return True

    def leave(self, connection: Connection) -> None:
        """Note that a connection has ended."""
        self._open.pop(connection, None)


class Connection(H11Protocol):
    """A connection that is closed if its client does not send or read in time."""

    def __init__(self, *args: Any, connections: Connections, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._all = connections
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether no whole request waits for its answer."""
        if self.cycle is None or self.cycle.response_complete:
            return True
        return self.conn.their_state is h11.SEND_BODY

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        if self._all.enter(self):
            self._expect()
        else:
            transport.write(_refusal())
            transport.close()

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``. h11 bounds a head only if it comes in parts."""
        for first in range(0, len(data), _PART):
            if not self.transport.is_closing():
                super().data_received(data[first : first + _PART])

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._all.leave(self)
        for timer in (self._deadline, self._stall):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """See ``H11Protocol``."""
        super().on_response_complete()
        self._expect()

    def pause_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()

    def _expect(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(HEADER_SECONDS, self._expired)

    def _expired(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _watch(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._stall = self.loop.call_later(STALL_SECONDS, self._stalled, left)

    def _stalled(self, before: int) -> None:
        if self.transport.get_write_buffer_size() >= before:
            self.transport.abort()
        else:
            self._watch()


def _refusal() -> bytes:
    """The whole response for a connection for which there is no room."""
    error = RequestError(CROWDED, "The server has too many connections.", "", "Send the request again later.")
    body = json.dumps(body_of(error)).encode()
    head = f"HTTP/1.1 {CROWDED.status} Service Unavailable\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\nRetry-After: {_RETRY_AFTER}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def _allow_files(most: int) -> None:
    """Raise this process's bound of open files, as far as it may."""
    if sys.platform == "win32":
        return  # has none for sockets
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
