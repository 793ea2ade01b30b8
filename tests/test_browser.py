"""Exported sites: their files, and the module that runs them, in headless Chromium beside the same model in Python."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import random_encoders

import llamagpu
from llamagpu import LLM, gpu
from llamagpu.browser import shards
from llamagpu.browser.buffers import buffer_names
from llamagpu.browser.serve import site_server
from llamagpu.errors import LlamaGPUError, UnsupportedModelError, UsageError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

pytest_plugins = ["browser_fixtures"]
PROMPTS = ("Once upon a time", "One day", "The cat")


def export(out: Path, model: str | Path | None = None, **options: Any) -> Path:
    """An exported site; skips the test if the libraries are not in the cache and cannot be fetched."""
    try:
        llamagpu.export(model, out, **options)
    except LlamaGPUError as e:
        if "could not be fetched" in e.what:
            pytest.skip(e.what)
        raise
    return out


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("exported") / "site", title="Stories")


# --- the files ------------------------------------------------------------------------------


def test_a_site_holds_the_model(folder: Path, story: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    for name, about in {**plan["files"], **{s["file"]: s for s in plan["shards"]}}.items():
        content = (folder / name).read_bytes()
        assert len(content) == about["bytes"], name
        assert hashlib.sha256(content).hexdigest() == about["sha256"], name
    contents = b"".join((folder / s["file"]).read_bytes() for s in plan["shards"])
    with story.device.using(gpu.Tuning()), LLM(device=story.device, tune=False) as llm:
        held = {name: buffer for buffer, name in buffer_names(llm.loaded.forward).items()}
        compared = 0
        for buffer in plan["buffers"]:
            if "at" in buffer and buffer["name"] not in ("pages", "rotations.0"):
                theirs = held[buffer["name"]]
                whole = gpu.Part(theirs, 0, theirs.size, 0, 1)
                ours = contents[buffer["at"] : buffer["at"] + buffer["size"]]
                assert ours == llm.device.memory.read(whole)[: buffer["size"]], buffer["name"]
                compared += 1
    assert compared > 20
    assert plan["memory"]["total"] == sum(b["size"] for b in plan["buffers"])
    assert {p["name"] for p in plan["profiles"]} == {"software", "subgroups-f16", "subgroups", "f16", "base"}


def test_shards_are_cut_anywhere(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 1_000_004)
    other = export(tmp_path / "site")
    plan = json.loads((other / "plan.json").read_text())
    assert len(plan["shards"]) == 6
    assert max(s["bytes"] for s in plan["shards"]) == 1_000_004
    assert (
        b"".join((other / s["file"]).read_bytes() for s in plan["shards"])
        == (folder / "weights" / "0000.bin").read_bytes()
    )


def test_what_cannot_be_exported_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists"):
        llamagpu.export(None, folder)
    with pytest.raises(UsageError, match="title"):
        llamagpu.export(None, tmp_path / "site", title=" ")
    with pytest.raises(UsageError, match="context of 513"):
        llamagpu.export(None, tmp_path / "site", context=513)
    raw = random_encoders.config("bert")
    encoder = random_encoders.write_model(tmp_path / "bert", raw, random_encoders.tensors(raw, 0))
    with pytest.raises(UnsupportedModelError, match="encoder"):
        llamagpu.export(encoder, tmp_path / "site")
    assert not (tmp_path / "site").exists()
    with pytest.raises(UsageError, match=r"no plan\.json"):
        site_server(tmp_path, 0)
    with site_server(folder, 0) as server, pytest.raises(LlamaGPUError, match="cannot be used"):
        site_server(folder, server.server_address[1])


# --- in Chromium ----------------------------------------------------------------------------

LOAD = """async (options) => {
  const {load, LLMError} = await import("./llamagpu.js");
  globalThis.notices = [];
  try {
    globalThis.llm = await load(".", {onNotice: (text) => text && notices.push(text), ...options});
  } catch (e) {
    if (!(e instanceof LLMError)) throw e;
    return {code: e.code, message: e.message, notices};
  }
  return {info: llm.info, notices};
}"""


@pytest.fixture(scope="session")
def address(folder: Path, serve: Callable[[Path], str]) -> str:
    (folder / "blank.html").write_text("<!doctype html><title>blank</title>")
    return serve(folder)


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context() as context:
        context.set_default_timeout(300_000)
        yield context


@pytest.fixture(scope="module")
def loaded(context: BrowserContext, address: str) -> Page:
    """A page whose ``llm`` is the bundled model."""
    page = blank(context, address)
    outcome = page.evaluate(LOAD, {})
    assert outcome.get("info", {}).get("profile") == "software", outcome
    return page


def blank(context: BrowserContext, address: str) -> Page:
    page = context.new_page()
    page.goto(f"{address}blank.html")
    return page


def ids(page: Page, prompt: Any, **options: Any) -> Any:
    return page.evaluate("async ([p, o]) => (await llm.generate(p, o)).tokenIds", [prompt, options])


@pytest.mark.slow
def test_tokens_equal_pythons(loaded: Page, story: LLM) -> None:
    for prompt in PROMPTS:
        assert ids(loaded, prompt, maxTokens=24) == story.generate(prompt, max_tokens=24).token_ids
    long = [5 + i % 400 for i in range(300)]  # a prompt of several attention runs
    assert (
        ids(loaded, long, maxTokens=4, ignoreEos=True) == story.generate(long, max_tokens=4, ignore_eos=True).token_ids
    )
    drawn = ids(loaded, PROMPTS[0], maxTokens=24, temperature=0.8, seed=7)
    assert drawn == story.generate(PROMPTS[0], max_tokens=24, temperature=0.8, seed=7).token_ids
    filtered = {"topK": 40, "topP": 0.9, "minP": 0.02, "repetitionPenalty": 1.1, "presencePenalty": 0.2}
    bias = {"logitBias": {"13": -2}, "frequencyPenalty": 0.1}
    penalties = {"top_k": 40, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.1, "presence_penalty": 0.2}
    mine = story.generate(
        PROMPTS[0], max_tokens=24, temperature=0.9, seed=9, logit_bias={13: -2}, frequency_penalty=0.1, **penalties
    )
    assert ids(loaded, PROMPTS[0], maxTokens=24, temperature=0.9, seed=9, **filtered, **bias) == mine.token_ids


@pytest.mark.slow
def test_results_streams_and_chats_equal_pythons(loaded: Page, story: LLM) -> None:
    got = loaded.evaluate("(p) => llm.generate(p, {maxTokens: 20, stop: 'Lily'})", PROMPTS[0])
    mine = story.generate(PROMPTS[0], max_tokens=20, stop="Lily")
    assert (got["text"], got["tokenIds"], got["finishReason"]) == (mine.text, mine.token_ids, "stop")
    assert got["promptTokenIds"] == mine.prompt_token_ids
    both = loaded.evaluate(
        "(ps) => Promise.all(ps.map((p) => llm.generate(p, {maxTokens: 8}).then((r) => r.text)))", PROMPTS
    )
    assert both == [story.generate(p, max_tokens=8).text for p in PROMPTS]  # they overlap
    pieces, reason = loaded.evaluate(
        """async (prompt) => {
      const stream = llm.stream(prompt, {maxTokens: 200}), pieces = [];
      for await (const piece of stream) if (pieces.push(piece) === 5) break;
      return [pieces, (await stream.result).finishReason];
    }""",
        PROMPTS[0],
    )
    assert ("".join(pieces), reason) == (story.generate(PROMPTS[0], max_tokens=5).text, "cancelled")
    first = [{"role": "user", "content": "Once upon a time"}]
    answer = loaded.evaluate("(m) => llm.chat(m, {maxTokens: 8})", first)
    assert answer["tokenIds"] == story.chat(first, max_tokens=8).token_ids
    more = [*first, {"role": "assistant", "content": answer["text"]}, {"role": "user", "content": "The end"}]
    again = loaded.evaluate("(m) => llm.chat(m, {maxTokens: 8})", more)
    assert again["cachedTokens"] >= 4
    assert again["tokenIds"] == story.chat(more, max_tokens=8).token_ids
    assert loaded.evaluate("llm.detokenize(llm.tokenize('Hello, wörld'))") == "Hello, wörld"


@pytest.mark.slow
def test_bad_arguments_are_refused(loaded: Page) -> None:
    cases = {
        "llm.generate('')": "empty",
        "llm.generate('a', {maxTokens: 0})": "maxTokens is 0",
        "llm.generate('a', {tempreature: 1})": "no such option",
        "llm.generate([99999])": "not a token id",
        "llm.generate(Array(600).fill(5))": "600 tokens; the context holds 512",
        "llm.generate('a', {topP: 'x'})": "topP",
    }
    for call, words in cases.items():
        message = loaded.evaluate(f"async () => {{ try {{ await {call} }} catch (e) {{ return e.name + e.message }} }}")
        assert message, call
        assert message.startswith("LLMError"), message
        assert words in message


COUNT = """async ([prompt, tokens]) => {
  const counts = {}, undo = [];
  const count = (type, name) => {
    const original = type.prototype[name];
    undo.push(() => (type.prototype[name] = original));
    type.prototype[name] = function (...given) {
      counts[name] = (counts[name] ?? 0) + 1;
      if (name === "writeBuffer") counts.bytesUp = (counts.bytesUp ?? 0) + given[2].byteLength;
      if (name === "copyBufferToBuffer") counts.bytesDown = (counts.bytesDown ?? 0) + given[4];
      return original.apply(this, given);
    };
  };
  for (const name of ["createBindGroup", "createBuffer", "createCommandEncoder", "createComputePipelineAsync"])
    count(GPUDevice, name);
  for (const name of ["submit", "writeBuffer"]) count(GPUQueue, name);
  for (const name of ["beginComputePass", "copyBufferToBuffer"]) count(GPUCommandEncoder, name);
  count(GPUBuffer, "mapAsync");
  count(GPUComputePassEncoder, "dispatchWorkgroups");
  await llm.generate(prompt, {maxTokens: tokens, ignoreEos: true});
  undo.forEach((restore) => restore());
  return counts;
}"""


@pytest.mark.slow
def test_a_token_costs_one_submission_and_one_small_read(loaded: Page, story: LLM) -> None:
    ids(loaded, PROMPTS[0], maxTokens=4)  # bind groups are made when a plan first runs
    few, many = (loaded.evaluate(COUNT, [PROMPTS[0], n]) for n in (8, 24))
    per_token = {name: (many[name] - few.get(name, 0)) / 16 for name in many if many[name] != few.get(name, 0)}
    layers = story.config.num_hidden_layers
    assert per_token == {
        "createCommandEncoder": 1,
        "beginComputePass": 1,
        "dispatchWorkgroups": 5 * layers + 4,
        "copyBufferToBuffer": 1,
        "bytesDown": 16,
        "submit": 1,
        "mapAsync": 1,
    }


@pytest.mark.slow
def test_a_lost_device_costs_a_pause(context: BrowserContext, address: str, story: LLM) -> None:
    page = blank(context, address)
    page.evaluate("""() => {
      const original = GPUAdapter.prototype.requestDevice;
      GPUAdapter.prototype.requestDevice = async function (...given) {
        return (globalThis.device = await original.apply(this, given));
      };
    }""")
    page.evaluate(LOAD, {})
    result = page.evaluate(
        """async (prompt) => {
      const stream = llm.stream(prompt, {maxTokens: 20, temperature: 0.7, seed: 3, repetitionPenalty: 1.2});
      let pieces = 0;
      for await (const piece of stream) if (++pieces === 6) device.destroy();
      return {...(await stream.result), notices};
    }""",
        PROMPTS[0],
    )
    mine = story.generate(PROMPTS[0], max_tokens=20, temperature=0.7, seed=3, repetition_penalty=1.2)
    assert result["text"] == mine.text
    assert result["notices"] == ["The GPU was lost; loading the model again."]
    code = page.evaluate(
        """async (prompt) => {
      const stream = llm.stream(prompt, {maxTokens: 20});
      try {
        for await (const piece of stream) device.destroy();
      } catch (e) {
        return e.code;
      }
    }""",
        PROMPTS[0],
    )
    assert code == "device-lost"  # a second loss within a minute
    page.close()


# --- hostile conditions ---------------------------------------------------------------------


@pytest.mark.slow
def test_unusable_adapters_are_named(loaded: Page) -> None:
    def outcome(gpu: str) -> Any:
        return loaded.evaluate(f"""async () => {{
          const {{load}} = await import("./llamagpu.js");
          return load(".", {{gpu: {gpu}}}).catch((e) => [e.code, e.message]);
        }}""")

    assert outcome("null")[0] == "no-webgpu"
    assert outcome("{requestAdapter: async () => null}")[0] == "no-adapter"
    code, message = outcome("""{requestAdapter: async () => ({
      features: new Set(), info: {}, limits: {maxBufferSize: 1000, maxStorageBufferBindingSize: 2 ** 27,
      maxStorageBuffersPerShaderStage: 8, maxComputeWorkgroupStorageSize: 16384, maxComputeInvocationsPerWorkgroup: 256,
      maxComputeWorkgroupsPerDimension: 65535}})}""")
    assert code == "too-small"
    assert "maxBufferSize: needed 1048576, offered 1000" in message


SHARD = "weights/0000.bin"


@pytest.mark.slow
def test_downloads_are_checked_kept_and_shared(
    browser: Browser, folder: Path, tmp_path: Path, serve: Callable[[Path], str]
) -> None:
    copy = shutil.copytree(folder, tmp_path / "site")
    (copy / "blank.html").write_text("<!doctype html><title>blank</title>")
    address, whole = serve(copy), (copy / SHARD).read_bytes()
    with browser.new_context() as context:
        context.set_default_timeout(300_000)
        asked: list[str] = []
        context.on("request", lambda request: asked.append(request.url.removeprefix(address)))
        page = blank(context, address)
        for wrong in (whole[:-4], whole[:-1] + bytes([whole[-1] ^ 1]), whole + b"0000"):
            (copy / SHARD).write_bytes(wrong)
            outcome = page.evaluate(LOAD, {})
            assert outcome.get("code") == "damaged", outcome
            assert SHARD in outcome["message"]
        (copy / SHARD).write_bytes(whole)
        context.route(f"**/{SHARD}", lambda route: route.abort())
        assert page.evaluate(LOAD, {})["code"] == "offline"
        context.unroute(f"**/{SHARD}")
        assert SHARD not in kept(page, copy)
        asked.clear()
        other = blank(context, address)
        outcomes = two_tabs(page, other)
        assert [o["info"]["name"] for o in outcomes] == ["stories", "stories"]
        assert asked.count(SHARD) == 1
        assert any("Another tab" in n for o in outcomes for n in o["notices"])
        assert SHARD in kept(page, copy)
        asked.clear()
        assert page.evaluate(LOAD, {})["info"]["name"] == "stories"
        assert asked == ["plan.json"]  # a second visit downloads nothing else
        full = page.evaluate(
            """async (load) => {
          await caches.keys().then((names) => Promise.all(names.map((name) => caches.delete(name))));
          Cache.prototype.put = async () => { throw new DOMException("full", "QuotaExceededError"); };
          return [await eval(load)({}), await caches.keys()];
        }""",
            LOAD,
        )
        assert full[0]["info"]["name"] == "stories"
        assert ["no room" in n for n in full[0]["notices"]] == [True]
        assert full[1] == []


def kept(page: Page, site: Path) -> list[str]:
    """The site's files that the browser keeps."""
    urls = page.evaluate("""async () => {
      const keys = await Promise.all((await caches.keys()).map(async (name) => (await caches.open(name)).keys()));
      return keys.flat().map((request) => request.url);
    }""")
    plan = json.loads((site / "plan.json").read_text())
    files = {**plan["files"], **{s["file"]: s for s in plan["shards"]}}
    return [name for name, about in files.items() if any(about["sha256"] in url for url in urls)]


def two_tabs(one: Page, other: Page) -> list[Any]:
    """What loading gives in two tabs at once."""
    for page in (one, other):
        page.evaluate(f"(() => {{ globalThis.outcome = ({LOAD})({{}}); }})()")
    return [page.evaluate("outcome") for page in (one, other)]


@pytest.mark.slow
def test_the_page_tells_a_story(context: BrowserContext, address: str, story: LLM) -> None:
    page = context.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(address)
    page.get_by_role("button", name="Load the model").click()
    page.get_by_role("radio", name="Text").check(force=True)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest answer").fill("12")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("textbox").last.fill(PROMPTS[0])
    page.keyboard.press("Enter")
    words = story.generate(PROMPTS[0], max_tokens=12).text
    page.get_by_text(words, exact=True).wait_for()
    assert page.title() == "Stories"
    assert not faults
    page.close()
