"""Chat templates and their limits, conversations and their cache, and the chat and inspect commands."""

from __future__ import annotations

import io
import json
import os
import pickle
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import random_models

from llamagpu import LLM, gpu
from llamagpu.cli.main import run
from llamagpu.errors import ContextFullError, UnsupportedModelError, UsageError
from llamagpu.kernels.kv_write import PAGE
from llamagpu.model import parse_config
from llamagpu.model.cache import PagedCache
from llamagpu.model.sources import HuggingFace
from llamagpu.text import ChatTemplate, ChatTemplates, Conversation, Rendered, special_tokens

LLAMA = parse_config(random_models.config())
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <b>"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Why?"},
]


# --- templates -----------------------------------------------------------------------------


def test_published_templates(shared: Path) -> None:
    """They render, contain every message once, and end where the answer begins."""
    paths = sorted((shared / "tokenizers" / "chat-templates").glob("*.jinja"))
    assert len(paths) >= 6
    for path in paths:
        template = ChatTemplate(path.read_text(), {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"})
        tools = (
            [{"name": "f", "description": "", "parameters": {"properties": {}}}] if "tool_use" in path.name else None
        )
        text = template.render(Conversation(MESSAGES, tools)).text
        assert text.count("Hi <b>") == text.count("Why?") == text.count("Hello.") == 1
        assert text.rstrip().endswith(("<|im_start|>assistant", "<|start_header_id|>assistant<|end_header_id|>"))


def templates_of(directory: Path, chosen: str | None = None) -> ChatTemplates:
    source = HuggingFace(directory)
    return ChatTemplates(source.chat_templates(), chosen, special_tokens(source.tokenizer_config()), ())


def text_of(templates: ChatTemplates, tools: list | None = None) -> str:
    return templates.of(tools).render(Conversation(MESSAGES, tools)).text


def test_the_llama_3_template_exactly(shared: Path) -> None:
    template = templates_of(shared / "tokenizers" / "llama3").of()
    text = template.render(Conversation(MESSAGES[1:])).text
    assert text.startswith("<|begin_of_text|><|start_header_id|>")
    assert text.endswith(
        "<|start_header_id|>user<|end_header_id|>\n\nHi <b><|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_where_templates_are_found(tmp_path: Path) -> None:
    assert not templates_of(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(
        json.dumps({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]})
    )
    tools = [{"name": "f"}]
    templates = templates_of(tmp_path)
    assert (text_of(templates), text_of(templates, tools), text_of(templates, [])) == ("d", "t", "d")
    assert text_of(templates_of(tmp_path, "tool_use")) == "t"
    assert text_of(templates_of(tmp_path, "{{ 1 + 1 }}"), tools) == "2"
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}!")
    config.write_text(json.dumps({"bos_token": {"content": "<s>"}}))
    templates = templates_of(tmp_path)
    assert text_of(templates) == text_of(templates, tools) == "<s>!"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools[0].name }}")
    assert text_of(templates_of(tmp_path), tools) == "f"
    config.write_text(json.dumps({"chat_template": [{"name": "rag", "template": "r"}]}))
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UnsupportedModelError, match="default"):
        templates_of(tmp_path).of()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 2 seconds"),
        ("{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "characters"),
        ("{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}", "characters"),
        ("{{ 'a' * 10000000000 }}", "large values"),
        ("{{ 10 ** 10 ** 10 }}", "large values"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages[9].content.x }}", "UndefinedError"),
    ],
)
def test_hostile_templates_are_stopped(source: str, message: str) -> None:
    start, trace = time.monotonic(), sys.gettrace()
    with pytest.raises(UsageError, match=message):
        ChatTemplate(source, {}).render(Conversation(MESSAGES))
    assert time.monotonic() - start < 10
    assert sys.gettrace() is trace


def test_an_invalid_template_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="not valid"):
        ChatTemplate("{% for %}", {})


# --- conversations -------------------------------------------------------------------------


def test_a_conversation_reuses_the_cache(device: gpu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second turn prefills only new tokens, and gives the same answer as a fresh model."""
    with LLM(device=device) as llm, LLM(device=device) as fresh:
        rows: list[int] = []
        forward = llm._session.model.forward
        original = forward.prefill
        monkeypatch.setattr(forward, "prefill", lambda n, *more: (rows.append(n), original(n, *more))[1])
        messages = [
            {"role": "user", "content": "Once upon a time there was a little dog who liked to run in the park. " * 3}
        ]
        first = llm.chat(messages, max_tokens=20)
        messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "Then"}]
        second = llm.chat(messages, max_tokens=20)
        assert second.prompt_tokens > first.prompt_tokens + 10
        assert rows[0] >= 32
        assert rows[1] <= 32 < 64 < second.prompt_tokens
        assert second.token_ids == fresh.chat(messages, max_tokens=20).token_ids
        assert llm.chat(messages, max_tokens=20).token_ids == second.token_ids
        assert rows[2] <= PAGE  # whole pages are shared
        other = [{"role": "user", "content": "Tom had a red ball."}]
        assert llm.chat(other, max_tokens=10).token_ids == fresh.chat(other, max_tokens=10).token_ids
        everything = llm.generate([f"Story {i}" for i in range(12)], max_tokens=400, stop_token_ids=range(2, 2048))
        assert len(everything) == 12


def test_other_requests_take_cached_pages(device: gpu.Device) -> None:
    with LLM(device=device, context=64) as llm:
        cache = llm._session.model.cache
        free = cache.free_pages
        llm.chat([{"role": "user", "content": "Once upon a time"}], max_tokens=5)
        assert cache.free_pages == free  # cached pages count as free
        streams = [llm.stream("Once upon a time", max_tokens=60, ignore_eos=True) for _ in range(10)]
        assert {s.result.completion_tokens for s in streams} == {60}
        assert cache.free_pages == free
        assert llm.chat([{"role": "user", "content": "Once upon a time"}], max_tokens=5).completion_tokens == 5


def test_chat_follows_generation_config(tmp_path: Path, device: gpu.Device) -> None:
    c = random_models.config(vocab_size=300)
    random_models.write_model(tmp_path, c, random_models.tensors(c, 1))
    (tmp_path / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    messages = [{"role": "user", "content": "hi"}]
    with LLM(tmp_path, device=device) as llm:
        assert llm.chat(messages, max_tokens=2).seed is None
    (tmp_path / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": null}'
    )
    with LLM(tmp_path, device=device) as llm:
        assert llm.chat_settings == {"temperature": 0.6, "top_p": 0.9}
        assert llm.chat(messages, max_tokens=2).seed is not None
        assert llm.chat(messages, max_tokens=2, temperature=0).seed is None


def test_bad_conversations(story: LLM, tmp_path: Path, device: gpu.Device) -> None:
    for messages, message in (([], "empty"), (["hi"], "not a message"), ([{"role": "user"}], "not a message")):
        with pytest.raises(UsageError, match=message):
            story.chat(messages)
    c = random_models.config()
    random_models.write_model(tmp_path, c, random_models.tensors(c, 1))
    with LLM(tmp_path, device=device) as llm, pytest.raises(UsageError, match="no chat template"):
        llm.chat([{"role": "user", "content": "hi"}])


def test_a_huge_conversation_is_refused_before_it_is_tokenized(story: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = SimpleNamespace(longest=story._tokenizer.longest)
    text = "word " * 1_000_000
    template = SimpleNamespace(render=lambda given: Rendered(text, text))
    templates = SimpleNamespace(of=lambda tools: template)
    monkeypatch.setattr(story, "_prompts", replace(story._prompts, tokenizer=tokenizer, templates=templates))
    for content in (text, "Once"):
        with pytest.raises(ContextFullError, match="conversation has 5,000,000 characters"):
            story.chat([{"role": "user", "content": content}])


def test_pages_are_shared_by_prefix(device: gpu.Device) -> None:
    """Pages stay cached until another sequence needs them. The least recently used go first."""
    cache = PagedCache(device, LLAMA, context=160, pool=160, dtype="f32", rows=32)
    first, second = list(range(40)), list(range(32)) + [7] * 20
    held = cache.take(41, first)
    assert held is not None
    assert (held.cached, len(held.pages), cache.free_pages) == (0, 3, 7)
    cache.give(held, first)
    assert cache.free_pages == 10
    again, other = cache.take(41, first), cache.take(53, second)
    assert again is not None
    assert other is not None
    assert again.cached == other.cached == 32
    assert again.pages[:2] == other.pages[:2] == held.pages[:2]
    assert len({*again.pages, *other.pages}) == 5
    whole = cache.take(32, first[:32])  # the last token always runs again
    assert whole is not None
    assert whole.cached == 16
    assert cache.take(161) is None
    for pages, tokens in ((again, first), (other, second), (whole, first[:32])):
        cache.give(pages, tokens)
    everything = cache.take(160)
    assert everything is not None
    cache.give(everything)
    cold = cache.take(41, first)
    assert cold is not None
    assert cold.cached == 0
    cache.give(cold)
    assert (cache.free_pages, cache.free_slots) == (10, 32)


def test_pages_of_a_window_are_used_in_turns(device: gpu.Device) -> None:
    """If every layer has a window, a sequence holds the pages of the window and of a chunk, whatever its length. Only
    sequences that never overwrite a page share pages."""
    config = parse_config(random_models.CONFIGS["mistral-window"])
    assert config.window == 37
    cache = PagedCache(device, config, context=640, pool=160, dtype="f32", rows=32)
    long, short = cache.take(640), cache.take(40, list(range(40)))
    assert long is not None
    assert short is not None
    assert (len(long.pages), long.in_turns) == (5, True)  # 37 + 32 positions
    assert (len(short.pages), short.in_turns) == (3, False)
    row = cache._table[long.slot]
    assert list(row) == list(long.pages) * 8
    cache.give(long, list(range(100, 740)))
    cache.give(short, list(range(40)))
    again = cache.take(40, list(range(40)))
    assert again is not None
    assert again.cached == 32
    assert not any(page in cache._keys for page in set(long.pages) - set(again.pages))


# --- the chat command ----------------------------------------------------------------------


def chat(lines: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llamagpu", "chat", *arguments]
    return subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=120)


def test_chat_command(tmp_path: Path) -> None:
    """Commands, messages of several lines, and files. A refused command leaves the conversation unchanged."""
    saved, again, other = tmp_path / "talk.json", tmp_path / "again.json", tmp_path / "other.json"
    other.write_text('[{"role": "user", "content": "Hi", "name": "Tom"}]')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    lines = ["Once upon a time \\", "there was", '"""', "/Tom ran.", "", '  "Stop!" """', '"""/reset"""']
    lines += ["/help", "/save", f"/save {saved}", f"/save {saved}", "/nonsense"]
    lines += [f"/load {other}", f"/load {tmp_path / 'deep.json'}", f"/load {tmp_path / 'none'}", f"/save {again}"]
    lines += ["/reset", "/retry", "Tom", f"/load {saved}", f"/save {tmp_path / 'loaded.json'}", "/quit", "never"]
    done = chat(lines, "-n", "12", "--system", "A story.")
    assert done.returncode == 0, done.stderr
    for text in (
        "/system TEXT",
        "/save needs a file name",
        "7 messages in",
        "exists; choose",
        "Unknown command /nonsense",
        "other.json does not hold a conversation",
        "deep.json does not hold a conversation",
        "none could not be read: No such file",
        "(forgotten)",
        "no message to answer again",
        "7 messages from",
    ):
        assert text in done.stderr
    messages = json.loads(saved.read_text())
    assert [m["role"] for m in messages] == ["system"] + ["user", "assistant"] * 3
    asked = ["Once upon a time \nthere was", '/Tom ran.\n\n  "Stop!" ', "/reset"]
    assert [m["content"] for m in messages[1::2]] == asked
    assert messages[2]["content"] in done.stdout
    assert json.loads(again.read_text()) == json.loads((tmp_path / "loaded.json").read_text()) == messages
    assert done.stderr.count("(cut: --max-tokens)") == 4


def test_retry_samples_again_and_json_prints_a_line_per_answer() -> None:
    lines = ["Once upon a time", "/retry", "/retry", "Then"]
    done = chat(lines, "-n", "6", "--json", "-t", "1", "--seed", str(2**32 - 1))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [a["completion_tokens"] for a in answers] == [6] * 4
    assert [a["seed"] for a in answers] == [2**32 - 1, 0, 1, 2**32 - 1]
    first, second, third, then = (a["prompt_token_ids"] for a in answers)
    assert first == second == third
    assert len({a["text"] for a in answers[:3]}) > 1
    assert len(then) > len(first) + 6
    assert then[: len(first)] == first


class Typed:
    """A reader that returns prepared messages."""

    def __init__(self, *texts: str):
        self._texts = [*texts]

    def read(self) -> str | None:
        return self._texts.pop(0) if self._texts else None


def test_retry_without_a_seed(story: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    """/retry draws a new seed. In greedy decoding it says that the answer will be the same."""
    from llamagpu.cli.chat import Session

    assert Session(story, None, {"max_tokens": 2, "temperature": 1.0}, True).run(Typed("Tom", "/retry")) == 0
    seeds = [json.loads(line)["seed"] for line in capsys.readouterr().out.splitlines()]
    assert len(set(seeds)) == 2
    assert Session(story, None, {"max_tokens": 2}).run(Typed("Tom", "/retry")) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == out.splitlines()[1]
    assert err.count("temperature 0 gives the same answer") == 1


def test_a_full_context_drops_the_oldest_turns(tmp_path: Path) -> None:
    """It drops as few as needed, and never the system message. A message that is too long by itself is refused."""
    saved = tmp_path / "talk.json"
    lines = ["One day " * 12, "Then " * 12, "Tom", "word " * 600, "The dog", "ran " * 20, f"/save {saved}"]
    done = chat(lines, "-n", "12", "--context", "128", "--json", "--system", "A story.")
    assert done.returncode == 0, done.stderr
    sizes = [json.loads(line)["prompt_tokens"] for line in done.stdout.splitlines()]
    assert len(sizes) == 5
    assert max(sizes) <= 128 - 32
    assert done.stderr.count("(the context is full: the oldest 2 messages were dropped)") == 1
    assert "the context holds" in done.stderr
    assert "larger --context" in done.stderr
    messages = json.loads(saved.read_text())
    assert [m["role"] for m in messages] == ["system"] + ["user", "assistant"] * 4
    assert [m["content"][:4] for m in messages[1::2]] == ["Then", "Tom", "The ", "ran "]
    assert "(cut: the context is full" not in done.stderr


def test_a_chat_without_answers_fails(story: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    done = chat(["word " * 600], "-n", "5")
    assert done.returncode == 1
    assert done.stderr.count("the context holds 512") == 1
    assert not done.stdout
    from llamagpu.cli.chat import Session

    assert Session(story, None, {}).run(Typed("/help")) == 0
    assert Session(story, None, {}).run(Typed("word " * 600, "word " * 250)) == 0
    assert "(cut: the context is full; the next message drops" in capsys.readouterr().err


def test_a_full_context_raises_a_picklable_error(story: LLM) -> None:
    for prompt in ("word " * 600, "x" * 10**6):
        with pytest.raises(ContextFullError) as raised:
            story.generate(prompt)
        copy = pickle.loads(pickle.dumps(raised.value))
        assert (type(copy), str(copy), copy.hint) == (ContextFullError, str(raised.value), raised.value.hint)


@pytest.mark.parametrize("kept", [True, False])
def test_lines_are_edited_and_remembered(kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow keys edit and recall, Ctrl-C clears, Ctrl-D leaves. Without a file, history lasts until the chat ends."""
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input

    from llamagpu.cli.terminal import Terminal

    (tmp_path / "file").write_text("")
    folder = tmp_path / "new" if kept else tmp_path / "file" / "never"
    monkeypatch.setenv("LLAMAGPU_CACHE", str(folder))

    def read(*typed: str) -> list[str | None]:
        out = []
        with create_pipe_input() as keyboard, create_app_session(input=keyboard):
            terminal = Terminal()
            for keys in typed:
                keyboard.send_text(keys)
                out.append(terminal.read())
        return out

    up, left, end, back, control_c, control_d = "\x1b[A", "\x1b[D", "\x1b[F", "\x7f", "\x03", "\x04"
    lines = f'"""\rno{control_c}"""a\rb"""\r'
    found = read(f"one tw{left}{left}x{back}{end}o\r", f"{up}\r", lines, f"{up}{up}{up}\r", control_d)
    assert found == ["one two", "one two", '"""a\nb"""', "one two", None]
    assert read(f"{up}\r") == ["one two" if kept else ""]
    assert not kept or (folder / "chat_history").stat().st_mode & 0o777 == 0o600


class Screen:
    """The output of a program on a terminal."""

    def __init__(self, leader: int):
        self._leader, self._shown = leader, b""

    def wait(self, text: str) -> str:
        """Wait for ``text``, and return the output before it."""
        end = time.monotonic() + 60
        while text.encode() not in self._shown:
            ready, _, _ = select.select([self._leader], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} did not come: {self._shown!r}"
            self._shown += os.read(self._leader, 4096)
        before, _, self._shown = self._shown.partition(text.encode())
        return before.decode()


@pytest.mark.slow
def test_chat_on_a_terminal(tmp_path: Path) -> None:
    """Ctrl-C ends the answer but not the chat, the up arrow recalls a line, Ctrl-D leaves.

    The context meter follows a stopped answer. Standard output receives only answers.
    """
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    command = [sys.executable, "-m", "llamagpu", "chat", "-n", "500", "-t", "1.5", "--seed", "1"]
    environment = os.environ | {"LLAMAGPU_CACHE": str(tmp_path), "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"}
    process = subprocess.Popen(
        command, stdin=follower, stdout=subprocess.PIPE, stderr=follower, start_new_session=True, env=environment
    )
    os.close(follower)
    assert process.stdout is not None
    screen, ready = Screen(leader), "\x1b[?2004h"  # the start of an input line
    try:
        screen.wait(ready)
        os.write(leader, b"Once upon a time\r")
        first = process.stdout.read(30)
        process.send_signal(signal.SIGINT)
        assert "(stopped)" in screen.wait(" of 512 tokens)\x1b[0m")
        screen.wait(ready)
        os.write(leader, b"never\x03")
        screen.wait("(/exit to leave)")
        screen.wait(ready)
        os.write(leader, b"\x1b[A\r")
        assert process.stdout.read(30)
        process.send_signal(signal.SIGINT)
        screen.wait("(stopped)")
        os.write(leader, b"/help\r")
        screen.wait("/save FILE")
        screen.wait(ready)
        os.write(leader, b"\x04")
        out = first + process.stdout.read()
        assert process.wait(60) == 0
        assert not any(text in out for text in (b"> ", b"\x1b", b"tokens)", b"stopped"))
        assert (tmp_path / "chat_history").read_text().count("+Once upon a time\n") == 1
    finally:
        process.kill()
        process.wait()
        os.close(leader)
        process.stdout.close()


@pytest.mark.slow
def test_chat_with_another_template(story: LLM, tmp_path: Path) -> None:
    """A template and its variables. A variable that the template does not read is refused."""
    path = tmp_path / "template.jinja"
    path.write_text("{{ bos_token }}{% if loud is true %}{{ messages[0].content | upper }}{% endif %}{{ end }}")
    options = ["-n", "2", "--json", "--chat-template", str(path), "--template-arg"]
    done = chat(["Tom"], *options, "loud=true", "--template-arg", "end=a")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prompt_token_ids"] == story.tokenize("TOMa")
    for argument, message in (("lowd=true", "It reads bos_token, end, loud, messages"), ("loud", "is not a variable")):
        done = chat([], *options, argument)
        assert done.returncode == 2
        assert message in done.stderr
    done = chat([], "--chat-template", str(tmp_path / "none"))
    assert done.returncode == 2
    assert "cannot be read" in done.stderr


def test_chat_with_tools_documents_and_arguments(device: gpu.Device) -> None:
    template = (
        "{{ tools[0].name }} {{ documents[0].text }} {{ mood }} {{ messages[-1].content }}"
        "{% if add_generation_prompt %}!{% endif %}"
        '{# <tool_call>{"name": "", "arguments": {}}</tool_call> #}'
    )
    with LLM(device=device, chat_template=template) as llm:
        given = {"tools": [{"name": "run"}], "documents": [{"text": "Tom"}], "chat_template_kwargs": {"mood": "glad"}}
        messages = [{"role": "user", "content": "Hi"}]
        plain = {"add_special_tokens": False}
        assert llm.apply_chat_template(messages, **given) == llm.tokenize("run Tom glad Hi!", **plain)
        ids = llm.tokenize("run Tom glad Hi", **plain)
        assert llm.apply_chat_template(messages, add_generation_prompt=False, **given) == ids
        assert llm.chat(messages, max_tokens=1, continue_final_message=True, **given).prompt_token_ids == ids
        with llm.chat_stream(messages, max_tokens=1, **given) as stream:
            assert stream.result.prompt_tokens == len(llm.tokenize("run Tom glad Hi!", **plain))
        with pytest.raises(TypeError, match="unexpected keyword argument 'tool'"):
            llm.chat(messages, tool=[])
    with pytest.raises(UsageError, match="not text"):
        LLM(device=device, chat_template=7)


def test_chat_usage(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert run(["chat", "--top-p", "2"]) == 2
    assert "top_p is 2" in capsys.readouterr().err


# --- inspect -------------------------------------------------------------------------------


def test_inspect(capsys: pytest.CaptureFixture[str], story: LLM) -> None:
    assert run(["inspect", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] == sum(np.prod(e.shape) for e in _entries(story))
    assert report["weight_bytes"]["auto"] == story.sizes.weights
    assert report["weight_bytes"]["int4"] < report["weight_bytes"]["int8"] < report["weight_bytes"]["float32"]
    assert report["adapter"]["largest_context"]["auto"] == 512
    assert "tensor_list" not in report
    assert run(["inspect", "--tensors"]) == 0
    assert "model.norm.weight  BF16 [192]" in capsys.readouterr().out
    assert run(["inspect", "/nowhere"]) == 3


def _entries(llm: LLM) -> list:
    return list(llm._prepared.source.checkpoint.entries.values())
