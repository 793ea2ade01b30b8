"""The JavaScript of exported sites, run by Node on jobs: calls of text.js whose results Python predicts."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from test_special_tokens import OWN

from llamagpu.browser.libraries import write_libraries
from llamagpu.browser.text import text_files
from llamagpu.errors import LlamaGPUError, UsageError
from llamagpu.text import ChatTemplate, Conversation, StopFilter, TextStream, Tokenizer, special_tokens

SITE = Path(__file__).parent.parent / "llamagpu" / "browser" / "site" / "runtime"
SCRIPT = Path(__file__).parent / "browser" / "text.mjs"
SIZE = 2**21  # of every vocabulary, as far as these tests care


def make_site(folder: Path) -> Path:
    """A site without a model: the modules and the libraries. Skips the test without Node, or without the libraries."""
    if shutil.which("node") is None:
        pytest.skip("Node is not here")
    shutil.copytree(SITE, folder, dirs_exist_ok=True)
    (folder / "package.json").write_text('{"type": "module"}')  # so that Node takes .js for modules
    try:
        write_libraries(folder / "libraries")
    except LlamaGPUError as e:
        pytest.skip(f"the site's libraries are not here: {e.why}")
    return folder


@dataclass
class Given:
    """A source with a tokenizer and perhaps a chat template."""

    file: str | bytes
    config: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    name: str = "given"

    def tokenizer_file(self) -> str | bytes:
        return self.file

    def tokenizer_config(self) -> dict[str, Any]:
        return dict(self.config)

    def chat_templates(self) -> dict[str, str]:
        return {} if self.template is None else {"default": self.template}


class Job:
    """Calls of text.js on one tokenizer, with what Python says of each."""

    def __init__(self, folder: Path, source: Given):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in text_files(source, SIZE).items():
            (folder / name).write_text(text, encoding="utf-8")
        self.folder, self.work = folder, []
        self.expected: list[Any] = []
        self.tokenizer = Tokenizer(source.file, source.config, SIZE)
        special = special_tokens(source.config)
        reserved = self.tokenizer.special_texts
        self.template = None if source.template is None else ChatTemplate(source.template, special, reserved)

    def call(self, name: str, given: dict[str, Any], expected: Any) -> None:
        """Add a call."""
        self.work.append([name, given])
        self.expected.append(expected)

    def text(self, text: str) -> None:
        """Ids of a text, their text, and the pieces of a stream that follows a third of them."""
        for special in (True, False):
            ids = self.tokenizer.encode(text, special=special)
            self.call("encode", {"text": text, "options": {"addSpecialTokens": special}}, ids)
        self.ids(ids)

    def ids(self, ids: list[int], stop: tuple[str, ...] = ()) -> None:
        """The text of ids, and the pieces of a stream."""
        for skip in (True, False):
            decoded = self.tokenizer.decode(ids, skip_special=skip)
            self.call("decode", {"ids": ids, "options": {"skipSpecialTokens": skip}}, decoded)
        prompt, new = ids[: len(ids) // 3], ids[len(ids) // 3 :]
        stream, stops = TextStream(self.tokenizer, prompt), StopFilter(stop)
        pieces = [stops.push(stream.push(i)) for i in new]
        pieces.append(stops.push(stream.flush()) + stops.flush())
        expected = {"pieces": pieces, "stopped": stops.stopped}
        self.call("stream", {"ids": new, "options": {"prompt": prompt, "stop": stop}}, expected)

    def chat(self, messages: list[Any], now: str | None = None, **options: Any) -> None:
        """The prompt of a conversation and its ids, or the code of an error."""
        assert self.template is not None
        given = {"messages": messages, "options": options | ({"now": now} if now else {})}
        try:
            rendered = self.template.render(Conversation(messages, add_generation_prompt=True))
        except UsageError:
            self.call("chat", given, "bad-argument")
            return
        self.call("prompt", given, rendered.text)
        self.call("chat", given, self.tokenizer.encode_chat(rendered))


def run(site: Path, *jobs: Job) -> list[Any]:
    """The results of jobs: for each of them a list, or an error's parts."""
    given = json.dumps([{"folder": str(job.folder), "work": job.work} for job in jobs])
    done = subprocess.run(["node", str(SCRIPT), str(site)], input=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return json.loads(done.stdout)


def check(site: Path, *jobs: Job) -> None:
    """Every result is what Python said."""
    for job, results in zip(jobs, run(site, *jobs), strict=True):
        assert isinstance(results, list), (job.folder.name, results)
        for (name, given), got, expected in zip(job.work, results, job.expected, strict=True):
            found = got["error"] if isinstance(got, dict) and "error" in got else got
            assert found == expected, f"{job.folder.name}: {name} {given}\n{got!r}\n{expected!r}"


# --- tokenizers ----------------------------------------------------------------------------


@cache
def byte_level() -> str:
    """A small byte-level BPE."""
    made = OWN["byte-level"]()._tokenizer
    made.add_special_tokens(["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"])
    return str(made.to_str())


def llama2_pieces(**rules: bool) -> str:
    """A SentencePiece model with the normalizer of Llama 2's tokenizer.json, and other rules of special tokens."""
    made = json.loads(OWN["legacy"]()._tokenizer.to_str())
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps = [{"type": "Prepend", "prepend": "▁"}, replace]
    added = [token | rules for token in made["added_tokens"]]
    made |= {"pre_tokenizer": None, "added_tokens": added}
    return json.dumps(made | {"normalizer": {"type": "Sequence", "normalizers": steps}})
