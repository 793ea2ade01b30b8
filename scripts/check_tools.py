#!/usr/bin/env python3
"""Hold conversations with tools through the openai client, against a served model.

    python scripts/check_tools.py MODEL.gguf [--chat-template qwen.jinja] [-n 50]

The template must know tools; SmolLM2's does not, so give Qwen2.5's with it. Every conversation asks for a call
(``tool_choice="required"``), sends a result back and reads the answer. Half of them are streamed. Then the same
questions are asked with ``auto``, where the model decides. Texts have at most 40 characters, because small models may
not end them. Prints how many calls were valid by their schemas, how many named the tool that was meant, and the time.
Fails if a forced call is not valid. Needs the extras serve, guided and tools, and
openai.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

QUESTIONS = (
    ("What is the weather in {}?", "get_weather"),
    ("What time is it in {}?", "get_time"),
    ("Please send mail to Ann: I am in {}.", "send_mail"),
    ("How far is it from {} to Oslo?", "get_distance"),
    ("Translate the word {} into French.", "translate"),
)
PLACES = ("Rome", "Paris", "Tokyo", "Lima", "Cairo", "Berlin", "Delhi", "Quito", "Bern", "Dublin")


def get_weather(city: str, days: int = 1) -> str:
    """Get the weather forecast of a city.

    Args:
        city: The name of the city.
        days: How many days ahead.
    """
    return f"It is sunny in {city}."


def get_time(city: str) -> str:
    """Get the current time in a city.

    Args:
        city: The name of the city.
    """
    return f"It is noon in {city}."


def send_mail(to: str, text: str) -> str:
    """Send an e-mail.

    Args:
        to: The name of the recipient.
        text: The text of the mail.
    """
    return f"Sent to {to}."


def get_distance(start: str, end: str) -> str:
    """Get the distance between two cities.

    Args:
        start: The first city.
        end: The second city.
    """
    return f"{start} is 1000 km from {end}."


def translate(word: str, language: str) -> str:
    """Translate a word.

    Args:
        word: The word.
        language: The language to translate it into.
    """
    return f"{word} in {language} is {word}."


FUNCTIONS = {f.__name__: f for f in (get_weather, get_time, send_mail, get_distance, translate)}


def bounded(tool: dict[str, Any]) -> dict[str, Any]:
    """The tool with texts of at most 40 characters and numbers of two digits."""
    for schema in tool["function"]["parameters"]["properties"].values():
        schema |= {"maxLength": 40} if schema["type"] == "string" else {"minimum": 0, "maximum": 99}
    return tool


class Check:
    """Conversations with a served model, and what was counted."""

    def __init__(self, client: Any, tools: list[dict[str, Any]]):
        self._client, self._tools = client, tools
        self._schemas = {t["function"]["name"]: t["function"]["parameters"] for t in tools}

    def ask(self, number: int, choice: str) -> tuple[bool, bool, bool]:
        """Whether the answer is a call, a valid one, and one of the tool that was meant."""
        from llamagpu.text.functions import check_arguments

        question, meant = QUESTIONS[number % len(QUESTIONS)]
        messages: list[Any] = [{"role": "user", "content": question.format(PLACES[number % len(PLACES)])}]
        options = {"model": "checked", "tools": self._tools, "tool_choice": choice, "max_tokens": 200, "temperature": 0}
        options |= {"parallel_tool_calls": False}
        create = self._client.chat.completions.create
        if number % 2:
            with self._client.chat.completions.stream(messages=messages, **options) as stream:
                answer = stream.get_final_completion().choices[0]
        else:
            answer = create(messages=messages, **options).choices[0]
        calls = answer.message.tool_calls or []
        if not calls or answer.finish_reason != "tool_calls":
            return False, False, False
        name, arguments = calls[0].function.name, json.loads(calls[0].function.arguments)
        valid = name in self._schemas and check_arguments(self._schemas[name], arguments) is None
        content = FUNCTIONS[name](**arguments) if valid else "There is no such tool."
        messages += [answer.message, {"role": "tool", "tool_call_id": calls[0].id, "content": content}]
        create(messages=messages, model="checked", tools=self._tools, max_tokens=8)
        return True, valid, name == meant


def main() -> int:
    """Serve the model in this process, and ask it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--chat-template", type=Path, help="Jinja in place of the model's own")
    parser.add_argument("-n", type=int, default=50, help="conversations of each kind")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    import openai

    from llamagpu import LLM
    from llamagpu.server.gate import Gate
    from llamagpu.server.guard import Access
    from llamagpu.server.models import Models, Served
    from llamagpu.server.serve import Server
    from llamagpu.text.functions import function_schema

    template = None if args.chat_template is None else args.chat_template.read_text(encoding="utf-8")
    with LLM(args.model, chat_template=template, device=args.device) as llm:
        models = Models(["checked=."], {}, 4, 8)
        models.served, models.loaded = {"checked": Served("checked", llm, Gate(4, 8))}, True
        models.load = models.close = lambda *_: None  # type: ignore[method-assign]
        ready = threading.Event()
        server = Server(models, Access(), 0, ready=ready.set, grace=1.0)
        thread = threading.Thread(target=server.run)
        thread.start()
        ready.wait(10)
        failed = False
        try:
            with openai.OpenAI(base_url=f"http://127.0.0.1:{server.address[1]}/v1", api_key="-") as client:
                check = Check(client, [bounded(function_schema(f)) for f in FUNCTIONS.values()])
                for choice in ("required", "auto"):
                    begin = time.perf_counter()
                    found = [check.ask(i, choice) for i in range(args.n)]
                    called, valid, meant = map(sum, zip(*found, strict=True))
                    seconds = time.perf_counter() - begin
                    print(f"{choice}: {args.n} asked, {called} calls, {valid} valid, {meant} as meant, {seconds:.0f} s")
                    failed |= choice == "required" and valid < args.n
        finally:
            server.stop()
            thread.join()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
