"""``llamagpu chat``: a conversation in the terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamagpu.cli.output import load_options, model_options, note, open_model, write
from llamagpu.errors import UnsupportedModelError, UsageError

if TYPE_CHECKING:
    from llamagpu.engine import LLM

_HELP = """/help          this list
/reset         forget the conversation (the system message stays)
/system TEXT   set the system message and start anew; without TEXT, remove it
/save FILE     write the conversation to a file, as JSON
/exit          leave (as does the end of input, Ctrl-D)
Ctrl-C stops an answer."""


@click.command()
@model_options
@click.option("--system", help="A system message.")
@click.option("-n", "--max-tokens", type=int, default=512, show_default=True, help="The most tokens of an answer.")
@click.option("-t", "--temperature", type=float, help="0 takes the likeliest token. [default: the model's]")
@click.option("--top-k", type=int, help="Draw from the k likeliest tokens. [default: the model's]")
@click.option("--top-p", type=float, help="Draw from the likeliest tokens up to p. [default: the model's]")
@click.option("--min-p", type=float, help="Leave out what is below this share of the best. [default: the model's]")
@click.option("--repetition-penalty", type=float, help="Against tokens seen before. [default: the model's]")
@click.option("--seed", type=int, help="Repeat the draws. [default: new ones each time]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each answer, a line each.")
def chat(system: str | None, as_json: bool, **options: Any) -> None:
    """Talk with a model: a line is a message, /help lists commands.

    Answers go to standard output, everything else to standard error.
    """
    from llamagpu.engine.params import sampling_params

    load = load_options(options)
    settings = {k: v for k, v in options.items() if v is not None}
    sampling_params(**settings)
    with open_model(load) as llm:
        if llm.chat_template is None:
            raise UnsupportedModelError(
                f"The model {llm.directory.name} has no chat template.",
                "It was not made for conversations.",
                "Use llamagpu generate, or a model whose name says chat or instruct.",
            )
        Session(llm, system, settings, as_json).run()


class Session:
    """The messages so far, and the loop that reads, answers and obeys."""

    def __init__(self, llm: LLM, system: str | None, settings: dict[str, Any], as_json: bool = False):
        self._llm, self._settings, self._json = llm, settings, as_json
        self._messages: list[dict[str, str]] = []
        self._set_system(system)

    def run(self) -> None:
        """Until /exit or the end of input."""
        if sys.stdin.isatty():
            note(f"{self._llm.directory.name} on {self._llm.device.adapter}. /help lists commands.")
        while (line := self._read()) is not None:
            line = line.strip()
            if line.startswith("/"):
                if not self._command(line):
                    return
            elif line:
                self._answer(line)

    def _read(self) -> str | None:
        """A line of input; None at its end. Ctrl-C drops the line."""
        if not sys.stdin.isatty():
            line = sys.stdin.readline()
            return line or None
        while True:
            try:
                return input("> ")
            except EOFError:
                note("")
                return None
            except KeyboardInterrupt:
                note("\n(/exit leaves)")

    def _answer(self, text: str) -> None:
        """Print an answer as it comes; an interrupted one counts as far as it went, a failed message not at all."""
        self._messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            with self._llm.chat_stream(self._messages, **self._settings) as stream:
                try:
                    for piece in stream:
                        pieces.append(piece)
                        if not self._json:
                            write(piece)
                    if stream.result.finish_reason == "length":
                        note(
                            "\n(cut: " + ("the context is full" if stream.result.context_full else "--max-tokens") + ")"
                        )
                except KeyboardInterrupt:
                    note("\n(stopped)")
            write(json.dumps(stream.result.as_dict(), ensure_ascii=False) + "\n" if self._json else "\n")
        except UsageError as e:
            self._messages.pop()
            note(f"error: {e.what}\n  {e.why}\n  The message was not taken; /reset starts anew.")
            return
        self._messages.append({"role": "assistant", "content": "".join(pieces).strip()})

    def _command(self, line: str) -> bool:
        """Obey a command; False to leave."""
        name, _, argument = line.partition(" ")
        if name == "/exit":
            return False
        if name == "/reset":
            self._messages = [m for m in self._messages if m["role"] == "system"]
            note("(forgotten)")
        elif name == "/system":
            self._set_system(argument.strip())
            note("(system message set, conversation forgotten)" if argument.strip() else "(no system message)")
        elif name == "/save":
            self._save(argument.strip())
        else:
            note(_HELP if name == "/help" else f"There is no command {name}.\n{_HELP}")
        return True

    def _set_system(self, text: str | None) -> None:
        self._messages = [{"role": "system", "content": text}] if text else []

    def _save(self, name: str) -> None:
        if not name:
            note("/save needs the name of a file.")
            return
        path = Path(name).expanduser()
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(self._messages, file, ensure_ascii=False, indent=2)
        except FileExistsError:
            note(f"{path} exists; choose another name.")
        except OSError as e:
            path.unlink(missing_ok=True)
            note(f"{path} could not be written: {e.strerror or e}")
        else:
            note(f"({len(self._messages)} messages in {path})")
