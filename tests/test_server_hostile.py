"""Requests that are made to harm the server: each is refused soon, and the others are served all the while."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest
import serving
from serving import CHAT, error, eventually

from llamagpu import LLM
from llamagpu.server import connections, serve
from llamagpu.server.answers import event
from llamagpu.server.guard import Access

COMPLETIONS = "/v1/completions"
JSON = {"Content-Type": "application/json"}
MOST = 8_000_000


def filled(before: str, item: str, after: str) -> str:
    """A body of 8 MB."""
    return before + ",".join([item] * ((MOST - len(before) - len(after)) // (len(item) + 1))) + after


def numbered(before: str, item: str, count: int) -> str:
    return before + ",".join(item % i for i in range(count)) + "}" * before.count("{")


# Bodies, and the field or the word that the error names. The longest took 84 seconds and 5 GB without bounds.
BODIES: dict[str, tuple[str, Callable[[], str], str]] = {
    "prompts that are null": (COMPLETIONS, lambda: filled('{"prompt":[', "null", "]}"), "prompt"),
    "prompts of one id": (COMPLETIONS, lambda: filled('{"prompt":[', "1", "]}"), "prompt"),
    "prompts of one letter": (COMPLETIONS, lambda: filled('{"prompt":[', '"a"', "]}"), "prompt"),
    "lists of wrong ids": (COMPLETIONS, lambda: filled('{"prompt":[', '[""]', "]}"), "prompt"),
    "a long prompt": (COMPLETIONS, lambda: filled('{"prompt":"', "a b", '"}'), "prompt"),
    "unknown fields": (COMPLETIONS, lambda: numbered('{"prompt":"a",', '"x%d":1', 500_000), "x0"),
    "biases": (COMPLETIONS, lambda: numbered('{"prompt":"a","logit_bias":{', '"%d":1', 100_000), "logit_bias"),
    "wrong biases": (COMPLETIONS, lambda: numbered('{"prompt":"a","logit_bias":{', '"%d":""', 500_000), "logit_bias"),
    "stop strings": (COMPLETIONS, lambda: '{"prompt":"a","stop":[' + ",".join(['"zz"'] * 10_000) + "]}", "stop"),
    "wrong stop strings": (COMPLETIONS, lambda: filled('{"prompt":"a","stop":[', "1", "]}"), "stop"),
    "a long stop string": (COMPLETIONS, lambda: filled('{"prompt":"a","stop":["', "a", '"]}'), "stop"),
    "stop ids": (COMPLETIONS, lambda: filled('{"prompt":"a","stop_token_ids":[', "1", "]}"), "stop_token_ids"),
    "messages": (CHAT, lambda: filled('{"messages":[', '{"role":"user","content":"a"}', "]}"), "messages"),
    "wrong messages": (CHAT, lambda: filled('{"messages":[', "1", "]}"), "messages"),
    "a message of parts": (
        CHAT,
        lambda: filled('{"messages":[{"role":"user","content":[', '{"type":"text","text":"a"}', "]}]}"),
        "messages",
    ),
    "a nested message": (
        CHAT,
        lambda: '{"messages":[{"role":"user","content":' + "[" * 900 + "]" * 900 + "}]}",
        "messages",
    ),
    "a text to tokenize": ("/tokenize", lambda: filled('{"prompt":"', "a b", '"}'), "prompt"),
    "ids to detokenize": ("/detokenize", lambda: filled('{"tokens":[', "5", "]}"), "tokens"),
    "n": (COMPLETIONS, lambda: '{"prompt":"a","n":1' + "0" * 4000 + "}", "n"),
    "infinity": (COMPLETIONS, lambda: '{"prompt":"a","temperature":Infinity}', "temperature"),
    "a large exponent": (COMPLETIONS, lambda: '{"prompt":"a","min_p":1e400}', "min_p"),
    "a bias that is NaN": (COMPLETIONS, lambda: '{"prompt":"a","logit_bias":{"1":NaN}}', "logit_bias"),
    "a file": (COMPLETIONS, lambda: '{"prompt":"a","model":"file:///etc/passwd"}', "model"),
    "an address": (COMPLETIONS, lambda: '{"prompt":"a","model":"http://127.0.0.1:1/x"}', "model"),
    "a path": (COMPLETIONS, lambda: '{"prompt":"a","model":"../../../etc/passwd"}', "model"),
}


@contextlib.contextmanager
def watched(url: str) -> Iterator[list[float]]:
    """How long the server took to say that it is well, again and again."""
    waits: list[float] = []
    stop = threading.Event()

    def work() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stop.wait(0.01):
                begin = time.monotonic()
                assert client.get("/health").status_code == 200
                waits.append(time.monotonic() - begin)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield waits
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_no_body_stalls_the_server(story: LLM) -> None:
    process = psutil.Process()
    with serving.running(serving.Borrowed(stories=story)) as url, httpx.Client(base_url=url, timeout=100) as client:
        with watched(url) as waits:
            for name, (path, make, word) in BODIES.items():
                body, before = make().encode(), process.memory_info().rss
                response = client.post(path, content=body, headers=JSON)
                assert response.status_code == (404 if word == "model" else 400), (name, response.text[:200])
                assert word in (error(response)["param"] or "").split(".")[0] or "token" in error(response)["message"]
                assert len(response.content) < 5000, name
                assert process.memory_info().rss - before < 1 << 30, name
        assert max(waits) < 5  # on a loaded machine; most of it is the JSON of 8 MB
        assert client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 2}).status_code == 200


@pytest.mark.slow
def test_a_body_without_end(story: LLM) -> None:
    """A body without a length is refused at its bound, however much more would come."""
    sent = 0
    with serving.running(serving.Borrowed(stories=story)) as url:
        head = serving.post(url, COMPLETIONS, b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        chunk = b"100000\r\n" + b"a" * (1 << 20) + b"\r\n"
        before = psutil.Process().memory_info().rss
        with serving.raw(url, head) as connection:
            connection.setblocking(False)
            found, rest = b"", b""
            while b"request_too_large" not in found:
                rest = rest or chunk
                with contextlib.suppress(BlockingIOError):
                    found += connection.recv(65536)
                with contextlib.suppress(BlockingIOError):
                    count = connection.send(rest)
                    sent, rest = sent + count, rest[count:]
        assert b" 413 " in found
        assert sent < 1 << 30
        assert psutil.Process().memory_info().rss - before < 200 << 20


def test_connections_are_bounded(story: LLM) -> None:
    """Clients that send nothing, half a head or half a body make room for others; those that are answered do not."""
    beginnings = [b"", b"GET /health HTTP/1.1\r\nHo"]
    body = json.dumps({"prompt": "a", "max_tokens": 480, "ignore_eos": True, "stream": True}).encode()
    with (
        serving.running(serving.Borrowed(stories=story), connections=8) as url,
        contextlib.ExitStack() as stack,
        httpx.Client(base_url=url) as client,
    ):
        beginnings.append(serving.post(url, COMPLETIONS, b"{", length=100))
        for i in range(100):
            stack.enter_context(serving.raw(url, beginnings[i % 3]))
        assert client.get("/health").status_code == 200
        streams = [stack.enter_context(serving.raw(url, serving.post(url, COMPLETIONS, body))) for _ in range(8)]
        for stream in streams:
            assert b" 200 " in stream.recv(1000)
        with serving.raw(url, b"") as refused:
            told = refused.recv(10_000)
        assert told.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: " in told
        assert json.loads(told.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"


def test_clients_that_read_nothing(story: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lose their connection, and their generation is cancelled."""
    listening = serve.listening

    def small(host: str, port: int) -> socket.socket:
        found = listening(host, port)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # accepted ones inherit it
        return found

    monkeypatch.setattr(serve, "listening", small)
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.1)
    models = serving.Borrowed(stories=story)
    body = {"prompt": "a", "max_tokens": 480, "ignore_eos": True, "stream": True, "logprobs": 20}
    with serving.running(models) as url, socket.socket() as deaf:
        host, port = url.removeprefix("http://").split(":")
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((host, int(port)))
        deaf.sendall(serving.post(url, COMPLETIONS, json.dumps(body).encode()))
        gate = models.served["stories"].gate
        eventually(lambda: gate.running == 1)
        eventually(lambda: gate.running == 0, 20)
        deaf.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            while part := deaf.recv(65536):
                assert b"[DONE]" not in part


def test_a_text_makes_no_events_of_its_own() -> None:
    hostile = "a\n\ndata: [DONE]\n\r\n\x85data: {}\u2028\u2029event: x\x0b\x0c\x1c"
    line, *rest = event({"text": hostile}).splitlines()
    assert rest == [""]
    assert json.loads(line.removeprefix("data: ")) == {"text": hostile}


def test_requests_that_are_no_http(story: LLM) -> None:
    key = {"Authorization": f"Bearer {serving.KEY}"}
    access = Access(keys=[serving.KEY])
    with serving.running(serving.Borrowed(stories=story), access) as url, httpx.Client(base_url=url) as client:
        host = url.removeprefix("http://").encode()
        for head in (
            b"GET /health HTTP/1.1\r\n\r\n",  # without a host
            b"GET /health HTTP/1.1\r\nHost: " + host + b"\r\nHost: evil.example\r\n\r\n",
            b"GET /health HTTP/1.0\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: " + host + b"\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
            b"POST /x HTTP/1.1\r\nHost: " + host + b"\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na",
            b"POST /x HTTP/1.1\r\nHost: " + host + b"\r\nTransfer-Encoding: x\r\n\r\na",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        ):
            with serving.raw(url, head) as connection:
                assert connection.recv(100).split()[1] in (b"400", b"403", b"501"), head[:80]
        for path in ("/%2e%2e/%2e%2e/etc/passwd", "/..%5c..%5cx", "//etc/passwd", "/page.json/../../x", "/%00"):
            response = client.get(path, headers=key)
            assert response.status_code == 404, path
            assert error(response)["code"] == "not_found"
        injected = client.get("/v1/models/a%0d%0aSet-Cookie:%20x=1", headers=key)
        assert injected.status_code == 404
        assert "set-cookie" not in injected.headers
