"""The server from its start to its end: loading, lost devices, signals, and its page."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import random_embedders
import random_encoders
import serving
from serving import CHAT, error, eventually

from llamagpu import LLM, CrossEncoder, Embedder
from llamagpu.cli.main import run
from llamagpu.engine import isolated
from llamagpu.errors import DeviceLostError, LlamaGPUError, UsageError
from llamagpu.server import connections, serve
from llamagpu.server.guard import Access
from llamagpu.server.models import Models
from llamagpu.server.opening import named, open_model
from llamagpu.server.running import Piece, together

TEXT = "Once upon a time"


class Slow(serving.Borrowed):
    """Models whose loading waits."""

    def __init__(self, **models: Any):
        super().__init__(**models)
        self.go = threading.Event()

    def load(self, progress: Any = None) -> None:
        self.go.wait(10)
        super().load()


def test_nothing_is_answered_while_models_load(story: LLM) -> None:
    models = Slow(stories=story)
    server = serve.Server(models, Access(), 0, grace=1)
    thread = threading.Thread(target=server.run)
    thread.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.address[1]}") as client:
        for call in (lambda: client.get("/health"), lambda: client.post("/v1/completions", json={"prompt": "a"})):
            response = call()
            assert response.status_code == 503
            assert error(response)["code"] == "loading"
            assert response.headers["retry-after"] == "1"
        assert client.get("/metrics").status_code == 200
        models.go.set()
        eventually(lambda: client.get("/health").status_code == 200)
    server.stop()
    thread.join(10)


def test_errors_of_the_engine(story: LLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    models = serving.Borrowed(stories=story)
    served, secret = models.served["stories"], "a secret prompt"
    raised: list[Exception] = []
    start = type(served).start

    def failing(*args: Any, **options: Any) -> Any:
        if raised:
            raise raised[0]
        return start(*args, **options)

    monkeypatch.setattr(type(served), "start", failing)
    body = {"prompt": TEXT, "max_tokens": 2}
    with caplog.at_level(logging.DEBUG), serving.running(models) as url, httpx.Client(base_url=url) as client:
        raised.append(DeviceLostError("The device was lost.", "It was lost twice."))
        response = client.post("/v1/completions", json=body)
        assert (response.status_code, error(response)["code"]) == (503, "device_lost")
        health = client.get("/health")
        assert (health.status_code, error(health)["code"]) == (503, "device_lost")
        with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as stream:
            assert "device_lost" in stream.read().decode()
        raised[:] = [RuntimeError(secret)]
        response = client.post("/v1/completions", json=body | {"prompt": secret})
        assert response.status_code == 500
        assert "RuntimeError" in error(response)["message"]
        with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as stream:
            assert "server_error" in stream.read().decode()
        raised.clear()
        assert client.post("/v1/completions", json=body).status_code == 200
        assert client.get("/health").status_code == 200
    assert "secret" not in caplog.text


def test_a_silent_stream_tells_that_it_is_alive() -> None:
    async def silent() -> AsyncIterator[Piece]:
        await asyncio.sleep(0.05)
        yield Piece("a", [], [], None)

    async def found() -> list[Any]:
        out: list[Any] = []
        async for item in together([silent()], beat=0.02):
            out.append(item)
            if item is not None:
                break
        return out

    items = serving.run_apart(found())
    assert items[0] is None
    assert items[-1] == (0, Piece("a", [], [], None))


def test_slow_clients(story: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.1)
    with serving.running(serving.Borrowed(stories=story), Access(body_seconds=0.1)) as url:
        with serving.raw(url, b"GET /health HTTP/1.1\r\nHo") as connection:
            assert connection.recv(100) == b""
        with serving.raw(url, serving.post(url, CHAT, b"{", length=100)) as connection:
            assert b" 408 " in connection.recv(100)


def test_addresses_that_others_reach_need_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "model.example"):
        with pytest.raises(UsageError, match="other machines"):
            Access(host).check()
        Access(host, keys=["k"]).check()
    with pytest.raises(UsageError, match="ASCII"):
        Access(keys=["é"]).check()
    assert run(["serve", "--host", "0.0.0.0"]) == 2
    assert "--api-key" in capsys.readouterr().err
    assert run(["serve", "-m", "a=x", "-m", "a=y"]) == 2
    assert "name a" in capsys.readouterr().err
    assert run(["serve", "--port", "0", "-m", "missing/", "--grace", "1"]) == 3
    assert "missing" in capsys.readouterr().err
    with serve.listening("127.0.0.1", 0) as taken, pytest.raises(UsageError, match="cannot listen"):
        serve.listening("127.0.0.1", taken.getsockname()[1])
    access = Access("0.0.0.0", keys=["k"])
    assert all(access.knows_host(h) for h in ("10.1.2.3:8080", "[fe80::1]:1", "localhost"))
    assert not access.knows_host("evil.example")
    assert not Access().knows_host("10.1.2.3")


def test_names_and_kinds_of_models(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    (tmp_path / "a=b").mkdir()
    assert named(f"x={tmp_path}") == ("x", str(tmp_path))
    assert named(str(tmp_path / "model.gguf"))[0] == "model"
    assert named(str(tmp_path / "a=b"))[0] == "a=b"
    assert named("owner/name") == ("owner/name", "owner/name")
    assert named("owner/name=owner/name:x.gguf") == ("owner/name", "owner/name:x.gguf")
    with pytest.raises(LlamaGPUError):
        Models(["missing/"], {}, 1, 1).load()


@pytest.mark.slow
def test_models_are_opened_as_what_they_are(tmp_path: Path) -> None:
    raw = random_encoders.CONFIGS["bert"]
    random_encoders.write_model(tmp_path / "encoder", raw, random_encoders.tensors(raw, 1))
    random_encoders.write_model(tmp_path / "ranker", raw, random_encoders.classifier(raw, 1, 1))
    random_embedders.write(tmp_path / "decoder", "qwen3-last")
    options = {"context": 40, "kv_dtype": "float32", "dtype": "auto"}
    kinds = {"encoder": Embedder, "ranker": CrossEncoder, "decoder": Embedder}
    for name, kind in kinds.items():
        with open_model(str(tmp_path / name), options) as model:
            assert isinstance(model, kind)
            assert model.max_length == 40


@contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its URL."""
    command = [sys.executable, "-m", "llamagpu", "serve", "--port", "0", *arguments]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert running.stderr is not None
        line = next(line for line in running.stderr if line.startswith("serving "))
        yield running, line.split()[-1]
    finally:
        running.kill()
        running.communicate()


def endless(url: str, tokens: int, choices: int = 1) -> Any:
    return httpx.stream(
        "POST",
        f"{url}/v1/completions",
        json={"prompt": TEXT, "max_tokens": tokens, "ignore_eos": True, "stream": True, "n": choices},
        timeout=60,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_the_server_after_its_requests(number: signal.Signals, code: int) -> None:
    with process() as (server, url), endless(url, 100) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.send_signal(number)
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert server.wait(20) == code
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


@pytest.mark.slow
def test_the_grace_ends(story: LLM) -> None:
    with process("--grace", "1", "--no-isolate") as (server, url), endless(url, 500, choices=32) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
        assert server.wait(20) == 0
        assert time.monotonic() - begin < 10


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_driver_that_ends_its_process_does_not_end_streams(story: LLM) -> None:
    expected = story.generate(TEXT, max_tokens=60).text
    with LLM(isolate=True) as llm, serving.running(serving.Borrowed(stories=llm)) as url:
        body = {"prompt": TEXT, "max_tokens": 60, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            first = next(lines)
            os.kill(llm._session._supervisor._process.pid, signal.SIGABRT)  # type: ignore[union-attr]
            data = [first, *(line for line in lines if line)]
        chunks = [json.loads(line.removeprefix("data: ")) for line in data[:-1]]
        assert "".join(c["choices"][0]["text"] for c in chunks) == expected
        assert llm._session._supervisor.deaths == 1  # type: ignore[union-attr]
        assert isolated.AGAIN_SECONDS > 0


def test_the_page(story: LLM) -> None:
    pytest.importorskip("llamagpu.page")
    models = serving.Borrowed(stories=story)
    with serving.running(models, Access(keys=["k"])) as url, httpx.Client(base_url=url) as client:  # needs no key
        types = {"/": "html", "/llamagpu.js": "javascript", "/connection.js": "javascript", "/page.json": "json"}
        for path, kind in types.items():
            response = client.get(path)
            assert response.status_code == 200
            assert kind in response.headers["content-type"]
            assert "default-src 'none'" in response.headers["content-security-policy"]
            assert client.head(path).status_code == 200
        assert client.get("/page.json").json() == {"title": "stories", "downloadBytes": None, "local": False}
        for path in ("/__init__.py", "/..%2fserver/app.py", "/%2e%2e/errors.py"):
            assert client.get(path).status_code in (401, 404)
