"""The server's endpoints over HTTP: what is answered, and what is refused."""

from __future__ import annotations

import base64
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import random_encoders
import random_models
import serving
from prometheus_client.parser import text_string_to_metric_families
from random_adapters import matrices, write_adapter
from serving import CHAT, HEADERS, KEY, MESSAGES, error, events, eventually

from llamagpu import LLM, CrossEncoder, Embedder, gpu
from llamagpu.errors import UsageError
from llamagpu.kernels.kv_write import PAGE
from llamagpu.server.guard import Access
from llamagpu.server.models import Models

TEXT = "Once upon a time"


@pytest.fixture(scope="module")
def models(story: LLM) -> serving.Borrowed:
    return serving.Borrowed(places=2, queue=2, stories=story)


@pytest.fixture(scope="module")
def url(models: serving.Borrowed) -> Iterator[str]:
    access = Access(keys=["other", KEY], origins=["https://friend.example"], hosts=["model.example"])
    with serving.running(models, access) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers=HEADERS, timeout=30) as client:
        yield client


def complete(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json={"prompt": TEXT, "max_tokens": 8, "temperature": 0} | body)
    assert response.status_code == 200, response.text
    return response.json()


def test_completions_are_those_of_the_model(client: httpx.Client, story: LLM) -> None:
    expected = story.generate(TEXT, max_tokens=8, logprobs=3)
    found = complete(client, model="stories", user="someone")
    assert found["object"] == "text_completion"
    assert found["model"] == "stories"
    assert found["choices"] == [{"index": 0, "text": expected.text, "logprobs": None, "finish_reason": "length"}]
    counts = {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13}
    assert found["usage"] == counts | {"prompt_tokens_details": {"cached_tokens": 0}}
    told = complete(client, logprobs=2)["choices"][0]["logprobs"]
    assert expected.logprobs is not None
    assert "".join(told["tokens"]) == expected.text
    assert told["token_logprobs"] == pytest.approx([t.logprob for t in expected.logprobs], abs=1e-6)
    assert [len(likely) for likely in told["top_logprobs"]] == [2] * 8
    assert [expected.text[i:].startswith(t) for i, t in zip(told["text_offset"], told["tokens"], strict=True)]
    assert len(complete(client, logprobs=0)["choices"][0]["logprobs"]["top_logprobs"][0]) == 1


def test_prompts_of_every_kind(client: httpx.Client, story: LLM) -> None:
    ids = story.tokenize(TEXT)
    one = complete(client)["choices"][0]["text"]
    assert complete(client, prompt=ids)["choices"][0]["text"] == one
    for prompts in ([TEXT, "The dog"], [ids, story.tokenize("The dog")]):
        found = complete(client, prompt=prompts, n=2, temperature=0.9, seed=5)
        expected = [
            story.generate(p, max_tokens=8, temperature=0.9, seed=5 + i).text for p in (TEXT, "The dog") for i in (0, 1)
        ]
        assert [c["text"] for c in found["choices"]] == expected
        assert [c["index"] for c in found["choices"]] == [0, 1, 2, 3]
        assert found["usage"]["prompt_tokens"] == len(ids) + len(story.tokenize("The dog"))


def test_settings_reach_the_engine(client: httpx.Client, story: LLM) -> None:
    settings = {"temperature": 1.0, "top_k": 40, "min_p": 0.01, "top_p": 0.95, "seed": 3, "repetition_penalty": 1.1}
    settings |= {"presence_penalty": 0.5, "frequency_penalty": 0.25, "ignore_eos": True, "stop_token_ids": [7]}
    expected = story.generate(TEXT, max_tokens=12, logit_bias={5: -3.0}, **settings).text
    assert complete(client, max_tokens=12, logit_bias={"5": -3}, **settings)["choices"][0]["text"] == expected
    stopped = complete(client, stop=["little", "xyz"], max_tokens=40, logprobs=1)["choices"][0]
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == ", there was a "
    assert stopped["logprobs"]["tokens"] == [",", " there", " was", " a", " little"]  # begins with the text's space


def test_response_formats(client: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema["additionalProperties"] = False
    format = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    body = {"messages": MESSAGES, "model": "stories", "response_format": format}
    choice = client.post(CHAT, json=body).json()["choices"][0]
    assert (list(json.loads(choice["message"]["content"])), choice["finish_reason"]) == (["ok"], "stop")
    found = complete(client, response_format={"type": "json_object"}, max_tokens=3)["choices"][0]
    assert found["text"].startswith("{")
    assert found["finish_reason"] == "length"


def test_chat_and_its_stream(client: httpx.Client, story: LLM) -> None:
    expected = story.chat(MESSAGES, max_tokens=6)
    body = {"messages": MESSAGES, "model": "stories", "max_completion_tokens": 6, "logprobs": True, "top_logprobs": 2}
    body |= {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "store": False}
    found = client.post(CHAT, json=body).json()
    choice = found["choices"][0]
    assert found["object"] == "chat.completion"
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    content = choice["logprobs"]["content"]
    assert b"".join(bytes(t["bytes"]) for t in content) == expected.text.encode()
    assert [len(t["top_logprobs"]) for t in content] == [2] * 6
    with client.stream("POST", CHAT, json=body | {"stream": True, "stream_options": {"include_usage": True}}) as r:
        assert r.headers["content-type"].startswith("text/event-stream")
        chunks = events(r)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    parts = [c["choices"][0] for c in chunks[1:-1]]
    assert "".join(p["delta"].get("content", "") for p in parts) == expected.text
    assert [t for p in parts if p["logprobs"] for t in p["logprobs"]["content"]] == content
    assert [p["finish_reason"] for p in parts] == [None] * (len(parts) - 1) + ["length"]
    assert all(c["usage"] is None for c in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == found["usage"]
    assert (found["usage"]["prompt_tokens"], found["usage"]["total_tokens"]) == (5, 11)


def test_cached_tokens_of_shared_beginnings(client: httpx.Client, story: LLM) -> None:
    """A completion keeps the bits of a lone run; its prompts are counted once, whatever the choices."""
    shared = "The duck swam to the big rock and sang a song for all of her small friends in the pond. "
    story.generate(shared, max_tokens=1)
    whole = (len(story.tokenize(shared)) - 1) // PAGE * PAGE
    expected = story.generate(shared + "Then", max_tokens=8, reuse="none")
    found = complete(client, prompt=shared + "Then", n=2)
    assert found["choices"][0]["text"] == expected.text
    assert found["usage"]["prompt_tokens_details"] == {"cached_tokens": whole}
    body = {"messages": [{"role": "user", "content": shared}], "max_tokens": 3, "stream": True}
    with client.stream("POST", CHAT, json=body | {"stream_options": {"include_usage": True}}) as response:
        assert events(response)[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": whole}


def test_a_stream_of_several_choices(client: httpx.Client) -> None:
    body = {"prompt": [TEXT, "The dog"], "n": 2, "max_tokens": 5, "temperature": 0.8, "seed": 1}
    whole = client.post("/v1/completions", json=body).json()
    with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        parts = [c["choices"][0] for c in events(response)]
    for choice in whole["choices"]:
        mine = [p for p in parts if p["index"] == choice["index"]]
        assert "".join(p["text"] for p in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]


def test_ids_of_tokens(client: httpx.Client, story: LLM) -> None:
    expected = story.generate(TEXT, max_tokens=8)
    choice = complete(client, return_token_ids=True)["choices"][0]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == (expected.prompt_token_ids, expected.token_ids)
    found = client.post("/tokenize", json={"prompt": TEXT}).json()
    assert found == {"count": 5, "max_model_len": 512, "tokens": story.tokenize(TEXT)}
    assert client.post("/tokenize", json={"messages": MESSAGES}).json() == found
    bare = client.post("/tokenize", json={"prompt": TEXT, "add_special_tokens": False}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": bare}).json() == {"prompt": TEXT}
    error(client.post("/tokenize", json={}))


def test_models_and_health(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [m["id"] for m in listed] == ["stories"]
    assert listed[0] == client.get("/v1/models/stories").json()
    assert listed[0]["max_model_len"] == 512
    assert error(client.get("/v1/models/../etc"))["code"] in ("not_found", "model_not_found")
    assert client.get("/health", headers={"Authorization": ""}).json() == {"status": "ok"}  # needs no key


def test_adapters_are_models(story: LLM, device: gpu.Device, tmp_path: Path) -> None:
    settings = {"r": 4, "lora_alpha": 4, "target_modules": ["down_proj"]}
    config = json.loads((story.directory / "config.json").read_text())
    path = write_adapter(tmp_path / "odd", settings, matrices(config, settings, 1, gain=3))
    with pytest.raises(UsageError, match="have the name odd"):
        Models([f"odd={story.directory}"], {}, 2, 2, {"odd": str(path)})
    models = Models([], {"device": device}, 2, 2, {"odd": str(path)})
    with serving.running(models) as url, httpx.Client(base_url=url, timeout=30) as client:
        base, odd = client.get("/v1/models").json()["data"]
        assert [base[key] for key in ("id", "root", "parent")] == ["stories", "stories", None]
        assert [odd[key] for key in ("id", "root", "parent")] == ["odd", "stories", "stories"]
        assert str(tmp_path) not in json.dumps(odd)
        plain = complete(client)["choices"][0]["text"]
        assert complete(client, model="stories")["choices"][0]["text"] == plain
        found = complete(client, model="odd")
        expected = models.served["stories"].llm.generate(TEXT, max_tokens=8, adapter="odd").text
        assert (found["model"], found["choices"][0]["text"]) == ("odd", expected)
        assert expected != plain
        chat = {"model": "odd", "messages": MESSAGES, "max_tokens": 3, "stream": True}
        with client.stream("POST", CHAT, json=chat) as response:
            assert {chunk["model"] for chunk in events(response)} == {"odd"}
        assert client.post("/v1/completions", json={"model": "even", "prompt": TEXT}).status_code == 404
        told = client.get("/metrics").text
        assert 'vllm:generation_tokens_total{model_name="odd"} 11.0' in told
        assert 'vllm:num_requests_running{model_name="stories"}' in told
        assert 'vllm:num_requests_running{model_name="odd"}' not in told


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": TEXT, "echo": True}, "echo"),
    ({"prompt": TEXT, "suffix": "."}, "suffix"),
    ({"prompt": TEXT, "best_of": 2}, "best_of"),
    ({"prompt": TEXT, "foo": 1}, "foo"),
    ({"prompt": TEXT, "messages": MESSAGES}, "messages"),
    ({}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [TEXT, 5]}, "prompt"),
    ({"prompt": [[True]]}, "prompt"),
    ({"prompt": TEXT, "temperature": "hot"}, "temperature"),
    ({"prompt": TEXT, "temperature": -1}, "temperature"),
    ({"prompt": TEXT, "top_p": 0}, "top_p"),
    ({"prompt": TEXT, "max_tokens": 0}, "max_tokens"),
    ({"prompt": TEXT, "seed": -1}, "seed"),
    ({"prompt": TEXT, "n": 0}, "n"),
    ({"prompt": [TEXT] * 40, "n": 40}, "prompt"),
    ({"prompt": TEXT, "n": 5}, "n"),  # two run and two wait
    ({"prompt": [TEXT] * 5}, "prompt"),
    ({"prompt": TEXT, "logprobs": 21}, "logprobs"),
    ({"prompt": TEXT, "logit_bias": {"cat": 1}}, "logit_bias"),
    ({"prompt": TEXT, "logit_bias": {"5": 1e6}}, "logit_bias"),
    ({"prompt": TEXT, "stream_options": {}}, "stream_options"),
    ({"prompt": TEXT, "stream": True, "stream_options": {"more": 1}}, "stream_options.more"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "pirate", "content": "a"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "a " * 600}]}, "messages"),
    ({"messages": MESSAGES, "response_format": {"type": "xml"}}, "response_format.type"),
    ({"messages": MESSAGES, "response_format": {"type": "json_schema"}}, "response_format"),
    ({"prompt": TEXT, "response_format": {"type": "json_object", "json_schema": {"schema": {}}}}, "response_format"),
    (
        {"prompt": TEXT, "response_format": {"type": "json_schema", "json_schema": {"schema": {"nope": 1}}}},
        "response_format",
    ),
    ({"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools"),
    ({"messages": MESSAGES, "tool_choice": "required"}, "tool_choice"),
    ({"messages": MESSAGES, "top_logprobs": 1}, "top_logprobs"),
    ({"messages": MESSAGES, "max_tokens": 1, "max_completion_tokens": 1}, "max_completion_tokens"),
    ({"messages": MESSAGES, "model": "other"}, "model"),
]


def test_wrong_fields_are_named(client: httpx.Client) -> None:
    for body, name in REFUSED:
        path = CHAT if "messages" in body and "prompt" not in body else "/v1/completions"
        response = client.post(path, json=body)
        assert response.status_code == (404 if name == "model" else 400), (body, response.text)
        found = error(response)
        assert found["param"] == name, (body, found)
        assert name.split(".")[-1] in found["message"] or name in ("prompt", "messages")
    full = error(client.post("/v1/completions", json={"prompt": "a " * 600}))
    assert (full["code"], full["param"]) == ("context_length_exceeded", "prompt")


def test_bodies_that_are_no_requests(client: httpx.Client, url: str) -> None:
    kind = {"Content-Type": "application/json"}
    nested = b'{"prompt": ' + b"[" * 100_000
    for body in (b"", b"{", b"[]", b"null", b"\xff\xfe", nested, b'{"prompt": "\\ud800"}', b'{"seed": ' + b"1" * 5000):
        response = client.post("/v1/completions", content=body, headers=kind)
        assert response.status_code == 400, body[:40]
        error(response)
    assert error(client.post("/v1/completions", content=b'{"temperature": NaN, "prompt": "a"}', headers=kind))
    plain = client.post("/v1/completions", content=b'{"prompt": "a"}', headers={"Content-Type": "text/plain"})
    assert "application/json" in error(plain)["message"]
    for method, path, status in (("GET", CHAT, 405), ("POST", "/nothing", 404), ("GET", "/docs", 404)):
        response = client.request(method, path)
        assert response.status_code == status
        error(response)
    large = b'{"prompt": "' + b"a" * 8_000_000 + b'"}'
    assert client.post("/v1/completions", content=large, headers=kind).status_code == 413
    chunks = (large[i : i + 1_000_000] for i in range(0, len(large), 1_000_000))  # without Content-Length
    response = client.post("/v1/completions", content=chunks, headers=kind)
    assert response.status_code == 413
    assert error(response)["code"] == "request_too_large"
    with serving.raw(url, serving.post(url, CHAT, b"{", length=10**15)) as connection:
        assert b" 413 " in connection.recv(100)


def test_keys_hosts_and_origins(client: httpx.Client, url: str) -> None:
    for key in ("", "Bearer", "Bearer a", f"Basic {KEY}", f"Bearer {KEY}x"):
        response = client.get("/v1/models", headers={"Authorization": key})
        assert response.status_code == 401
        assert error(response)["code"] == "invalid_api_key"
    assert client.get("/v1/models", headers={"Authorization": "bearer other"}).status_code == 200
    for host, status in (("localhost:1", 200), ("[::1]", 200), ("model.example", 200), ("evil.example", 403)):
        assert client.get("/v1/models", headers={"Host": host}).status_code == status, host
    own = url.replace("http", "https")
    for origin, status in ((url, 200), (own, 200), ("null", 403), ("http://evil.example", 403)):
        assert client.get("/v1/models", headers={"Origin": origin}).status_code == status, origin
    friend = {"Origin": "https://friend.example"}
    assert client.get("/v1/models", headers=friend).headers["access-control-allow-origin"] == friend["Origin"]
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    response = client.options(CHAT, headers=friend | asked | {"Authorization": ""})
    assert response.status_code == 200  # a preflight has no key


def test_metrics(client: httpx.Client) -> None:
    def read() -> dict[str, float]:
        families = text_string_to_metric_families(client.get("/metrics").text)
        return {s.name + json.dumps(s.labels): s.value for f in families for s in f.samples}

    label = json.dumps({"model_name": "stories"})
    complete(client)
    before = read()
    complete(client, n=2)
    after = read()
    grown = {
        "vllm:prompt_tokens_total": 10,
        "vllm:generation_tokens_total": 16,
        "vllm:time_to_first_token_seconds_count": 2,
        "vllm:e2e_request_latency_seconds_count": 2,
        "vllm:num_preemptions_total": 0,
        "vllm:spec_decode_num_draft_tokens_total": 0,
        "vllm:spec_decode_num_accepted_tokens_total": 0,
    }
    for name, by in grown.items():
        assert after[name + label] - before[name + label] == by, name
    assert after["vllm:num_requests_running" + label] == after["vllm:num_requests_waiting" + label] == 0
    assert after["vllm:kv_cache_usage_perc" + label] == 0
    ended = "vllm:request_success_total" + json.dumps({"finished_reason": "length", "model_name": "stories"})
    assert after[ended] - before[ended] == 2
    assert after['llamagpu:responses_total{"route": "/v1/completions", "status": "200"}'] >= 2


ENDLESS = {"prompt": TEXT, "max_tokens": 480, "ignore_eos": True, "temperature": 0}


def test_a_full_queue_and_clients_that_go(client: httpx.Client, url: str, models: serving.Borrowed, story: LLM) -> None:
    """Two sequences run, two wait, the next is refused; when the clients have gone, the engine is idle at once."""
    gate, pages = models.served["stories"].gate, serving.free_pages(story)
    waiting = [serving.raw(url, serving.post(url, "/v1/completions", json.dumps(ENDLESS).encode())) for _ in range(3)]
    stream = json.dumps(ENDLESS | {"stream": True}).encode()
    waiting.append(serving.raw(url, serving.post(url, "/v1/completions", stream)))
    eventually(lambda: (gate.running, gate.waiting) == (2, 2))
    usage = next(line for line in client.get("/metrics").text.splitlines() if line.startswith("vllm:kv_cache_usage"))
    assert 0 < float(usage.split()[-1]) < 1
    for body in (ENDLESS, {"messages": MESSAGES, "n": 4}):
        response = client.post(CHAT if "messages" in body else "/v1/completions", json=body)
        assert response.status_code == 429
        assert error(response)["code"] == "queue_full"
        assert int(response.headers["retry-after"]) >= 1
    waiting.pop().close()
    eventually(lambda: gate.waiting == 1)
    assert client.post("/v1/completions", json=ENDLESS | {"n": 2}).status_code == 429  # there is room for one
    assert gate.waiting == 1
    for connection in waiting:
        connection.close()
    eventually(lambda: (gate.running, gate.waiting) == (0, 0))
    eventually(lambda: serving.free_pages(story) == pages)


@pytest.mark.slow
def test_a_long_prompt_does_not_stall_streams(tmp_path: Path, device: gpu.Device) -> None:
    """Between two chunks of a prompt of 2,000 tokens, every stream gets a token, and its client sees it."""
    raw, chunk, prompt = random_models.config(max_position_embeddings=2560), 64, [i % 100 for i in range(2000)]
    random_models.write_model(tmp_path, raw, random_models.tensors(raw, 1))
    with LLM(tmp_path, device=device) as llm, pytest.MonkeyPatch.context() as patch:
        runner, passes, got = llm._session.engine._runner, list[int](), Counter[int]()
        prefill, launch = runner.prefill, runner.launch
        patch.setattr(runner, "chunk_rows", lambda beside: chunk)
        patch.setattr(runner, "prefill", lambda pack: passes.append(sum(n for _, n in pack)) or prefill(pack))
        patch.setattr(runner, "launch", lambda batch, n: passes.append(-len(batch)) or launch(batch, n))

        def read(client: httpx.Client, number: int) -> None:
            body = {"prompt": [number], "max_tokens": 2500, "ignore_eos": True, "stream": True}
            with client.stream("POST", "/v1/completions", json=body | {"return_token_ids": True}) as response:
                for line in response.iter_lines():
                    got[number] += line.startswith("data: {")
                    if number in over:
                        return

        over = list[int]()
        with serving.running(serving.Borrowed(model=llm)) as url, httpx.Client(base_url=url, timeout=30) as client:
            threads = [threading.Thread(target=read, args=(client, n)) for n in range(4)]
            for thread in threads:
                thread.start()
            eventually(lambda: all(got[n] > 2 for n in range(4)))
            passes.clear()
            before = dict(got)
            found = complete(client, prompt=prompt, max_tokens=2, return_token_ids=True)
            during = [got[n] - before[n] for n in range(4)]
            over += range(4)
            for thread in threads:
                thread.join()
        seen = passes.copy()
        assert found["choices"][0]["token_ids"] == llm.generate(prompt, max_tokens=2).token_ids
    chunks = [i for i, rows in enumerate(seen) if rows > 0]
    assert sum(seen[i] for i in chunks) == 2000
    assert len(chunks) == -(-2000 // chunk)
    assert all(seen[i + 1] == -4 for i in chunks[:-1])
    assert min(during) >= len(chunks) - 4  # some may be on their way


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, raw = tmp_path_factory.mktemp("encoders"), random_encoders.CONFIGS["bert"]
    random_encoders.write_model(folder / "embedder", raw, random_encoders.tensors(raw, 1))
    random_encoders.write_model(folder / "ranker", raw, random_encoders.classifier(raw, 1, 1))
    return folder


@pytest.mark.slow
def test_embeddings_and_ranks(story: LLM, encoders: Path) -> None:
    with pytest.raises(UsageError, match="takes no adapters"):
        Models([str(encoders / "ranker")], {}, 1, 1, {"odd": "path"}).load()
    texts = ["a1 a2 a3", "a4", "a5 a6"]
    with Embedder(encoders / "embedder") as embedder, CrossEncoder(encoders / "ranker") as ranker:
        models = serving.Borrowed(stories=story, embedder=embedder, ranker=ranker)
        with serving.running(models) as url, httpx.Client(base_url=url, timeout=30) as client:
            body = {"model": "embedder", "input": texts}
            found = client.post("/v1/embeddings", json=body).json()
            expected = embedder.encode(texts)
            assert np.allclose([d["embedding"] for d in found["data"]], expected)
            coded = client.post("/v1/embeddings", json=body | {"encoding_format": "base64", "dimensions": 4}).json()
            vector = np.frombuffer(base64.b64decode(coded["data"][1]["embedding"]), np.float32)
            assert np.array_equal(vector, embedder.encode(texts, truncate_dim=4)[1])
            assert found["usage"]["prompt_tokens"] == sum(len(embedder.tokenize(t)) for t in texts)
            body = {"model": "ranker", "query": "a1", "documents": [*texts[:2], {"text": texts[2]}], "top_n": 2}
            ranked = client.post("/v1/rerank", json=body | {"return_documents": True}).json()["results"]
            best = ranker.rank("a1", texts, top_k=2)
            assert [r["index"] for r in ranked] == [b["corpus_id"] for b in best]
            assert [r["relevance_score"] for r in ranked] == pytest.approx([b["score"] for b in best])
            assert [r["document"]["text"] for r in ranked] == [texts[b["corpus_id"]] for b in best]
            wrong: list[tuple[str, dict[str, Any], str]] = [
                ("/v1/embeddings", {"model": "stories", "input": "a"}, "model"),
                ("/v1/embeddings", {"model": "embedder", "input": []}, "input"),
                ("/v1/embeddings", {"model": "embedder", "input": [[1, 2]]}, "input"),
                ("/v1/embeddings", {"model": "embedder", "input": "a1", "dimensions": 10_000}, "dimensions"),
                ("/v1/rerank", {"model": "embedder", "query": "a", "documents": ["b"]}, "model"),
                ("/v1/rerank", {"model": "ranker", "query": "a", "documents": [{"x": 1}]}, "documents"),
                ("/v1/completions", {"model": "ranker", "prompt": "a"}, "model"),
                ("/v1/completions", {"prompt": "a"}, "model"),
            ]
            for path, given, name in wrong:
                assert error(client.post(path, json=given))["param"] == name, given
            ids = error(client.post("/v1/embeddings", json={"model": "embedder", "input": [1, 2]}))
            assert "check_embedding_ctx_length" in ids["message"]
            assert (
                "more than"
                in error(client.post("/v1/embeddings", json={"model": "embedder", "input": "a1 " * 999}))["message"]
            )
