"""Running the server: its socket, its signals, and the end of what runs."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn

from llamagpu.errors import UsageError
from llamagpu.model.weights import Progress
from llamagpu.server.app import make_app
from llamagpu.server.connections import Connections
from llamagpu.server.guard import Access
from llamagpu.server.models import Models

_MOST_HEAD = 65_536  # bytes of a request's head
_BACKLOG = 2048


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens on an address.

    Raises:
        UsageError: it cannot.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as e:
        why = getattr(e, "strerror", None) or str(e)
        raise UsageError(
            f"The server cannot listen on {host}, port {port}.", f"{why}.", "Try another --port."
        ) from None


class Server:
    """A server of models.

    Args:
        grace: seconds for running requests after SIGTERM or Ctrl-C.
        connections: the most open connections; see ``Connections``.
        progress: called with (bytes loaded, bytes in total).
        ready: called when the models are loaded.

    Attributes:
        address: what it listens on, once it runs.
    """

    def __init__(
        self,
        models: Models,
        access: Access,
        port: int,
        *,
        grace: float = 30.0,
        connections: int = 1000,
        progress: Progress | None = None,
        ready: Callable[[], None] = lambda: None,
    ):
        access.check()
        self._models, self._progress, self._ready = models, progress, ready
        self._failure: BaseException | None = None
        self._socket = listening(access.host, port)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        config: dict[str, Any] = {
            "http": Connections(connections).protocol,
            "ws": "none",
            "lifespan": "off",
            "loop": "asyncio",
        }
        config |= {"log_config": None, "proxy_headers": False, "server_header": False, "access_log": False}
        self._server = uvicorn.Server(
            uvicorn.Config(
                make_app(models, access),
                timeout_graceful_shutdown=max(1, round(grace)),
                h11_max_incomplete_event_size=_MOST_HEAD,
                **config,
            )
        )

    def run(self) -> None:
        """Load the models and serve them until a signal or ``stop``.

        Raises:
            LlamaGPUError: a model cannot be loaded.
            KeyboardInterrupt: Ctrl-C ended it.
        """
        before = None
        if threading.current_thread() is threading.main_thread():
            # uvicorn raises the signals that ended it again, for the handler of before.
            before = signal.signal(signal.SIGTERM, lambda *_: self.stop())
        loading = threading.Thread(target=self._load, name="llamagpu-loading", daemon=True)
        loading.start()
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()
            if not loading.is_alive():
                self._models.close()
            if before is not None:
                signal.signal(signal.SIGTERM, before)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End as after SIGTERM; from any thread."""
        self._server.should_exit = True

    def _load(self) -> None:
        try:
            self._models.load(self._progress)
        except BaseException as e:
            self._failure = e
            self.stop()
        else:
            self._ready()
