"""A server of the bundled model in this process, for tests."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx

from llamagpu import LLM
from llamagpu.server.gate import Gate
from llamagpu.server.guard import Access
from llamagpu.server.models import Model, Models, Served
from llamagpu.server.pages import SITE as SITE
from llamagpu.server.serve import Server

T = TypeVar("T")
KEY = "a secret"
HEADERS = {"Authorization": f"Bearer {KEY}"}
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Once upon a time"}]


class Borrowed(Models):
    """Models that stay open when the server ends."""

    def __init__(self, places: int = 32, queue: int = 64, **models: Model):
        super().__init__((), {}, places, queue)
        self.served = {name: Served(name, model, Gate(places, queue)) for name, model in models.items()}

    def load(self, progress: Any = None) -> None:
        self.loaded = True

    def close(self) -> None:
        self.loaded = False


@contextmanager
def running(models: Models, access: Access | None = None, port: int = 0, **options: Any) -> Iterator[str]:
    """The URL of a server, on a free port if none is given."""
    ready = threading.Event()
    server = Server(models, access or Access(), port, ready=ready.set, **{"grace": 1.0, **options})
    thread = threading.Thread(target=server.run)
    thread.start()
    assert ready.wait(10)
    try:
        yield f"http://127.0.0.1:{server.address[1]}"
    finally:
        server.stop()
        thread.join(10)
        assert not thread.is_alive()


def error(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, whose shape is checked."""
    found = response.json()
    assert found.keys() == {"error"}
    assert found["error"].keys() == {"message", "type", "param", "code"}
    assert isinstance(found["error"]["message"], str)
    assert found["error"]["message"]
    return found["error"]


def events(response: httpx.Response) -> list[Any]:
    """The events of a streamed response, which ends with [DONE]."""
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def raw(url: str, data: bytes) -> socket.socket:
    """A connection on which bytes were sent."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(data)
    return connection


def post(url: str, path: str, body: bytes, length: int | None = None) -> bytes:
    """The bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nHost: {url.removeprefix('http://')}\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
    return head.encode() + body


def free_pages(llm: LLM) -> int:
    """Pages of the cache that no sequence holds."""
    return llm.device.call(lambda: llm.loaded.cache.free_pages)


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine on a thread of its own: Playwright keeps an event loop on the main one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def eventually(check: Any, seconds: float = 5.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)
