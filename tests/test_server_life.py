"""The server from its start to its end: loading, lost devices, signals, and clients of other projects."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import random_embedders
import random_encoders
import serving
from serving import CHAT, MESSAGES, error, eventually

from llamagpu import LLM, CrossEncoder, Embedder
from llamagpu.cli.main import run
from llamagpu.engine import isolated
from llamagpu.errors import DeviceLostError, LlamaGPUError, UsageError
from llamagpu.server import serve
from llamagpu.server.guard import Access
from llamagpu.server.models import Models
from llamagpu.server.opening import named, open_model

TEXT = "Once upon a time"


@pytest.fixture(scope="module")
def url(story: LLM) -> Iterator[str]:
    with serving.running(serving.Borrowed(stories=story), Access(keys=["k"], body_bytes=2000)) as url:
        yield url


def test_the_openai_client(url: str, story: LLM) -> None:
    expected = story.chat(MESSAGES, max_tokens=6).text
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        assert [m.id for m in client.models.list()] == ["stories"]
        found = client.chat.completions.create(model="stories", messages=MESSAGES, max_tokens=6, logprobs=True)
        assert found.choices[0].message.content == expected
        assert len(found.choices[0].logprobs.content) == 6
        usage = {"include_usage": True}
        stream = client.chat.completions.create(
            model="stories", messages=MESSAGES, max_tokens=6, stream=True, stream_options=usage
        )
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == expected
        assert chunks[-1].usage.completion_tokens == 6
        extra = {"top_k": 3, "min_p": 0.1}
        text = client.completions.create(model="stories", prompt=TEXT, max_tokens=4, logprobs=2, extra_body=extra)
        assert len(text.choices[0].logprobs.tokens) == 4
        create = client.chat.completions.create
        with pytest.raises(openai.BadRequestError) as found_error:
            create(model="stories", messages=MESSAGES, temperature=-1)
        assert (found_error.value.param, found_error.value.type) == ("temperature", "invalid_request_error")
        with pytest.raises(openai.NotFoundError, match="no model other"):
            create(model="other", messages=MESSAGES)
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()
        with pytest.raises(openai.APIStatusError) as too_large:
            create(model="stories", messages=[{"role": "user", "content": "a" * 3000}])
        assert too_large.value.status_code == 413


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
        with pytest.raises(openai.APIError, match="was lost"), openai.OpenAI(base_url=f"{url}/v1", api_key="-") as ai:
            list(ai.completions.create(model="stories", prompt=TEXT, stream=True))
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


def test_slow_clients(story: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HEADER_SECONDS", 0.1)
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


def endless(url: str, tokens: int) -> Any:
    return httpx.stream(
        "POST",
        f"{url}/v1/completions",
        json={"prompt": TEXT, "max_tokens": tokens, "ignore_eos": True, "stream": True},
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
    with process("--grace", "1", "--no-isolate") as (server, url), endless(url, 500) as stream:
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


# --- clients of other projects, where they are installed -----------------------------------------


@pytest.mark.slow
def test_langchain(url: str, story: LLM) -> None:
    langchain = pytest.importorskip("langchain_openai")
    chat = langchain.ChatOpenAI(model="stories", base_url=f"{url}/v1", api_key="k", temperature=0, max_tokens=6)
    expected = story.chat(MESSAGES, max_tokens=6).text
    found = chat.invoke(TEXT)
    assert found.content == expected
    assert found.usage_metadata["output_tokens"] == 6
    assert "".join(chunk.content for chunk in chat.stream(TEXT)) == expected
    text = langchain.OpenAI(model="stories", base_url=f"{url}/v1", api_key="k", temperature=0, max_tokens=6)
    assert text.invoke(TEXT) == story.generate(TEXT, max_tokens=6).text


@pytest.mark.slow
def test_langchain_embeddings(tmp_path: Path) -> None:
    langchain = pytest.importorskip("langchain_openai")
    raw = random_encoders.CONFIGS["bert"]
    random_encoders.write_model(tmp_path, raw, random_encoders.tensors(raw, 1))
    # Its own tokenizer is that of OpenAI's models; its ids mean nothing here.
    options = {"model": "embedder", "api_key": "-", "check_embedding_ctx_length": False}
    with Embedder(tmp_path) as embedder, serving.running(serving.Borrowed(embedder=embedder)) as url:
        found = langchain.OpenAIEmbeddings(base_url=f"{url}/v1", **options).embed_documents(["a1 a2", "a3"])
        assert np.allclose(found, embedder.encode(["a1 a2", "a3"]))


@pytest.mark.slow
def test_llama_index(url: str, story: LLM) -> None:
    llama_index = pytest.importorskip("llama_index.llms.openai_like")
    message = pytest.importorskip("llama_index.core.llms").ChatMessage
    expected = story.chat(MESSAGES, max_tokens=6).text
    options = {"api_base": f"{url}/v1", "api_key": "k", "temperature": 0, "max_tokens": 6, "context_window": 512}
    llm = llama_index.OpenAILike(model="stories", is_chat_model=True, **options)
    messages = [message(role="user", content=TEXT)]
    assert llm.chat(messages).message.content == expected
    assert "".join(part.delta or "" for part in llm.stream_chat(messages)) == expected


@pytest.mark.slow
def test_the_llm_tool(url: str, story: LLM, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    entry = {"model_id": "local", "model_name": "stories", "api_base": f"{url}/v1", "api_key_name": "local"}
    lines = [f"{'- ' if i == 0 else '  '}{key}: {value}\n" for i, (key, value) in enumerate(entry.items())]
    (tmp_path / "extra-openai-models.yaml").write_text("".join(lines))
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path)}
    expected = story.chat(MESSAGES, max_tokens=6).text
    for more in ([], ["--no-stream"]):
        command = [sys.executable, "-m", "llm", "-m", "local", "--key", "k", "-o", "max_tokens", "6", *more, TEXT]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == expected.strip()


# --- the page and its module -----------------------------------------------------------------------

SCRIPT = """
import { load, LLMError } from "%(module)s";
const asked = [];
const llm = await load("%(url)s", { askKey: (text) => (asked.push(text), asked.length === 2 ? "k" : "wrong") });
const out = { asked, info: llm.info, tokens: await llm.tokenize("Once upon a time") };
out.text = await llm.detokenize(out.tokens);
const stream = llm.stream("Once upon a time", { maxTokens: 6 });
out.pieces = [];
for await (const piece of stream) out.pieces.push(piece);
out.generated = await stream.result;
out.drawn = await llm.generate("Once upon a time", { maxTokens: 6, temperature: 0.8 });
out.again = await llm.generate("Once upon a time", { maxTokens: 6, temperature: 0.8, seed: out.drawn.seed });
out.chat = await llm.chat([{ role: "user", content: "Once upon a time" }], { maxTokens: 6 });
const endless = llm.stream("Once upon a time", { maxTokens: 480, ignoreEos: true });
for await (const piece of endless) break;
out.stopped = (await endless.result).finishReason;
out.full = (await llm.generate("Once upon a time", { maxTokens: 600, ignoreEos: true })).contextFull;
out.errors = [];
const wrong = [{ topP: 0 }, { colour: 1 }, { maxTokens: 2, stop: [""] }];
for (const options of wrong) await llm.generate("a", options).catch((e) => out.errors.push([e.code, e.what, e.why]));
await llm.generate("a ".repeat(600)).catch((e) => out.errors.push([e.code, e instanceof LLMError]));
llm.close();
await llm.generate("a").catch((e) => out.errors.push([e.code]));
await load("http://127.0.0.1:9").catch((e) => out.errors.push([e.code]));
console.log(JSON.stringify(out));
"""


@pytest.mark.slow
def test_the_module_of_the_page(url: str, story: LLM) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not here")
    script = SCRIPT % {"module": (serving.SITE / "llamagpu.js").as_uri(), "url": url}
    done = subprocess.run(
        ["node", "--input-type=module", "-"], input=script, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = story.generate(TEXT, max_tokens=6)
    assert found["asked"] == ["The server's API key:", "The key is wrong. The server's API key:"]
    assert (found["info"]["name"], found["info"]["context"], found["info"]["hasChat"]) == ("stories", 512, True)
    assert found["info"]["adapter"]["software"] == ("software" in str(story.device.adapter))
    assert (found["tokens"], found["text"]) == (story.tokenize(TEXT), TEXT)
    assert "".join(found["pieces"]) == found["generated"]["text"] == expected.text
    assert found["generated"]["tokenIds"] == expected.token_ids
    assert found["generated"]["promptTokens"] == 5
    assert found["generated"]["finishReason"] == "length"
    assert not found["generated"]["contextFull"]
    assert found["generated"]["timings"]["decodeSeconds"] > 0
    assert found["drawn"]["tokenIds"] == found["again"]["tokenIds"]
    assert found["chat"]["text"] == story.chat(MESSAGES, max_tokens=6).text
    assert found["stopped"] == "cancelled"
    assert found["full"]
    codes = [error[0] for error in found["errors"]]
    assert codes == ["bad-argument", "bad-argument", "bad-argument", "context-full", "closed", "offline"]
    assert "top_p" in found["errors"][0][2]


def test_the_page(url: str) -> None:
    pytest.importorskip("llamagpu.page")
    with httpx.Client(base_url=url) as client:  # needs no key
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
