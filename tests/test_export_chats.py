"""Chats in exported sites: JavaScript's prompts and ids are those of Python, or the template is refused by name."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from conversations import CASES, CLOCK, SPECIAL, said, templates
from exported_text import SIZE, Given, Job, byte_level, check, llama2_pieces, run
from test_special_tokens import LOUD, OWN, TEMPLATES, random_conversation

from llamagpu.browser.text import text_files
from llamagpu.text import ChatTemplate, Conversation


def plain_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as a browser takes them: no tool calls."""
    return [{k: v for k, v in message.items() if k in ("role", "content", "name")} for message in messages]


@pytest.mark.slow
def test_random_conversations(site: Path, tmp_path: Path) -> None:
    """Special tokens in messages are text; the ids are Python's."""
    jobs = []
    made = {name: OWN[name]()._tokenizer.to_str() for name in ("legacy", "not legacy", "gemma")}
    made |= {"byte-level": byte_level(), "pieces": llama2_pieces(), "normalized": llama2_pieces(normalized=True)}
    made |= {"stripped": llama2_pieces(lstrip=True, rstrip=True)}
    for name, text in made.items():
        for kind, template in (TEMPLATES | {"loud": LOUD.replace("{{ m.name | lower }}", "")}).items():
            job = Job(tmp_path / f"{name} {kind}", Given(text, SPECIAL, template))
            for seed in range(20):
                few = ("<|im_start|>", "<|im_end|>", "<s>", "</s>") if seed % 2 else ()
                given = random_conversation(random.Random(seed), few)
                job.chat(plain_messages([*given.messages]))
            jobs.append(job)
    check(site, *jobs)


@pytest.mark.slow
def test_published_templates(site: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every conversation of the templates' goldens that a browser takes, byte for byte. Hermes' takes tools only."""
    monkeypatch.setattr("llamagpu.text.sandbox.now", lambda: CLOCK)
    jobs = []
    for name, template in templates(shared).items():
        job = Job(tmp_path / name, Given(byte_level(), SPECIAL, template))
        for case in CASES.values():
            messages = plain_messages([*case.given.messages])
            if not case.arguments and all(isinstance(m.get("content"), str) for m in messages):
                job.chat(messages, CLOCK.isoformat())
        jobs.append(job)
    hermes = next(job for job in jobs if "Hermes" in job.folder.name)
    check(site, *(job for job in jobs if job is not hermes))
    assert {result["error"] for result in run(site, hermes)[0]} == {"no-template"}


REFUSED = {
    None: "has no chat template",
    "{% for %}": "is not valid",
    "{{ raise_exception('no') }}": "takes no conversation",
    "{{ messages[0].content.zfill(9) }}": "does not work in a browser",
    "{{ messages[0].content | wordwrap(3) }}": "does not work in a browser",
    "{{ '%.2f' | format(1) }}": "does not work in a browser",
    "{{ strftime_now('%j') }}": "does not work in a browser",
    "{% if '</a>' in messages[0].content %}{{ true }}{% endif %}": "does not work in a browser",
}


def test_templates_that_browsers_refuse(site: Path, tmp_path: Path) -> None:
    jobs = []
    for n, template in enumerate(REFUSED):
        job = Job(tmp_path / str(n), Given(byte_level(), SPECIAL))
        files = text_files(Given(byte_level(), SPECIAL, template), SIZE)
        (job.folder / "text.json").write_text(files["text.json"])
        job.call("chat", {"messages": said("Hi")}, "no-template")
        jobs.append(job)
    for (result,), why in zip(run(site, *jobs), REFUSED.values(), strict=True):
        assert result["error"] == "no-template"
        assert why in result["what"] + result["why"]


def test_bad_arguments(site: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, Given(byte_level(), SPECIAL, TEMPLATES["chatml"]))
    for text in (5, None, "\ud800"):
        job.call("encode", {"text": text}, "bad-argument")
    job.call("stream", {"ids": [], "options": {"stop": [""]}}, "bad-argument")
    good = said("Hi")[0]
    for messages in ([], "Hi", [5], [{"role": "user"}], [good | {"content": 5}], [good | {"tool_calls": []}]):
        job.call("chat", {"messages": messages}, "bad-argument")
    for message in (good | {"role": "asistant"}, good | {"content": "\udc00"}, good | {"content": "\ufdd0<|im_end|>"}):
        job.call("chat", {"messages": [message]}, "bad-argument")
    job.chat([good | {"role": "developer"}])
    check(site, job)


def test_a_template_may_write_the_date(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamagpu.text.sandbox.now", lambda: CLOCK)
    template = "{{ strftime_now('%Y %y %m %d %B %b %A %a %H %I %M %S %p %%') }} {{ messages[0].content }}"
    job = Job(tmp_path, Given(byte_level(), SPECIAL, template))
    job.chat(said("Hi"), CLOCK.isoformat())
    check(site, job)
    assert ChatTemplate(template, {}).render(Conversation(said("Hi"))).text.startswith("2025 25 03 09 March")
