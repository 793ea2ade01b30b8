"""Clients of other projects against the server, and the page's module. Most skip where their package is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_encoders
import serving
from serving import MESSAGES

from llamagpu import LLM, Embedder
from llamagpu.errors import DeviceLostError
from llamagpu.server.guard import Access
from llamagpu.server.models import Served

TEXT = "Once upon a time"


@pytest.fixture(scope="module")
def url(story: LLM) -> Iterator[str]:
    with serving.running(serving.Borrowed(stories=story), Access(keys=["k"], body_bytes=2000)) as url:
        yield url


@pytest.mark.slow
def test_the_openai_client(url: str, story: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    import openai  # takes a second

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

        def lost(*_args: Any, **_options: Any) -> Any:
            raise DeviceLostError("The device was lost.")

        monkeypatch.setattr(Served, "start", lost)
        with pytest.raises(openai.InternalServerError):
            create(model="stories", messages=MESSAGES)
        with pytest.raises(openai.APIError, match="was lost"):
            list(create(model="stories", messages=MESSAGES, stream=True))


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
const long = "The duck swam to the big rock and sang a song for all of her small friends. ";
out.cached = [];
for (let i = 0; i < 2; i++) out.cached.push((await llm.generate(long, { maxTokens: 2 })).cachedTokens);
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
    assert found["cached"][1] == 16
    assert found["generated"]["timings"]["decodeSeconds"] > 0
    assert found["drawn"]["tokenIds"] == found["again"]["tokenIds"]
    assert found["chat"]["text"] == story.chat(MESSAGES, max_tokens=6).text
    assert found["stopped"] == "cancelled"
    assert found["full"]
    codes = [error[0] for error in found["errors"]]
    assert codes == ["bad-argument", "bad-argument", "bad-argument", "context-full", "closed", "offline"]
    assert "top_p" in found["errors"][0][2]


@pytest.mark.slow
def test_a_fuzzer_of_the_openapi_document(story: LLM) -> None:
    """No server error, no response that the document does not state, and every wrong body is refused."""
    pytest.importorskip("schemathesis")
    options = ["--max-examples", "30", "--phases", "fuzzing", "--seed", "1"]
    options += ["--exclude-checks", "positive_data_acceptance,unsupported_method"]  # ranges are not in the document
    with serving.running(serving.Borrowed(stories=story)) as url:
        command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{url}/openapi.json", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
