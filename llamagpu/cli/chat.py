"""``llamagpu chat``: a conversation in the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamagpu.cli.conversation import Message, fit, load, save
from llamagpu.cli.options import (
    adapter_option,
    adapter_scale_option,
    choose_adapter,
    load_options,
    model_options,
    read_text,
    shape_options,
    speculate_option,
    take_shape,
)
from llamagpu.cli.output import error_lines, note, open_model, write
from llamagpu.cli.prompt_cache import check_prompt_cache, prompt_cache, prompt_cache_option
from llamagpu.cli.reading import Lines, Reader, is_dumb, on_a_terminal, unwrap
from llamagpu.errors import ContextFullError, UnsupportedModelError, UsageError

if TYPE_CHECKING:
    from llamagpu.engine import LLM, Result, Stream

_HELP = """/help          this list
/reset         forget the conversation (the system message stays)
/retry         answer the last message again
/system TEXT   set the system message and start a new conversation; without TEXT, remove it
/save FILE     write the conversation to a new file, as JSON
/load FILE     continue a conversation that /save wrote
/exit, /quit   leave (Ctrl-D, the end of input, leaves too)
A line that ends with \\ continues on the next line.
A message that starts with \"\"\" continues until a line that ends with \"\"\".
Ctrl-C stops an answer."""
_SEEDS = 2**32


@click.command()
@model_options
@speculate_option
@adapter_option("The first is used.")
@adapter_scale_option
@click.option("--system", help="A system message.")
@click.option("-n", "--max-tokens", type=int, default=512, show_default=True, help="Most tokens of an answer.")
@click.option("-t", "--temperature", type=float, help="0 always takes the likeliest token. [default: the model's]")
@click.option("--top-k", type=int, help="Draw from the k likeliest tokens. [default: the model's]")
@click.option(
    "--top-p", type=float, help="Draw from the likeliest tokens whose probabilities add up to p. [default: the model's]"
)
@click.option("--min-p", type=float, help="Drop tokens below this share of the likeliest one. [default: the model's]")
@click.option(
    "--repetition-penalty", type=float, help="Penalty for tokens in prompt or text; 1 is none. [default: the model's]"
)
@click.option("--seed", type=int, help="Seed of the draws, to repeat a chat. [default: random]")
@click.option(
    "--chat-template",
    "template_file",
    type=click.Path(path_type=Path),
    help="A file with a chat template (Jinja) in place of the model's.",
)
@click.option(
    "--template-arg",
    "template_args",
    multiple=True,
    metavar="NAME=VALUE",
    help="A variable of the chat template, such as enable_thinking=false; VALUE is JSON, or else text.",
)
@shape_options
@prompt_cache_option
@click.option("--json", "as_json", is_flag=True, help="Print each answer as a JSON object on one line.")
def chat(
    system: str | None, as_json: bool, template_file: Path | None, template_args: tuple[str, ...], **options: Any
) -> int:
    """Chat with a model. Each line is a message; /help lists the commands.

    Answers go to standard output, everything else to standard error. The exit code is 1 if every message failed.
    """
    from llamagpu.engine.params import sampling_params

    load, kept = load_options(options), options.pop("prompt_cache")
    check_prompt_cache(kept)
    options |= take_shape(options)
    choose_adapter(load, options)
    settings = {k: v for k, v in options.items() if v is not None}
    sampling_params(**settings)
    if template_file is not None:
        load["chat_template"] = read_text(template_file, "chat template")
    with open_model(load) as llm:
        if not llm.chat_templates:
            raise UnsupportedModelError(
                f"The model {llm.name} has no chat template.",
                "It was not made for conversations.",
                "Use llamagpu generate, or a model whose name says chat or instruct, or give --chat-template.",
            )
        if template_args:
            settings["chat_template_kwargs"] = _template_args(template_args, llm)
        with prompt_cache(llm, kept):
            return Session(llm, system, settings, as_json).run(_open_reader())


def _template_args(given: tuple[str, ...], llm: LLM) -> dict[str, Any]:
    """The variables of the chat template. One that the template does not read is refused: it would do nothing."""
    known = llm.chat_templates.of().variables
    found = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or name not in known:
            names = ", ".join(sorted(known))
            raise UsageError(f"--template-arg {one} is not a variable of the chat template.", f"It reads {names}.")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found


def _open_reader() -> Reader:
    """Line editing and history on a terminal, plain lines elsewhere."""
    if on_a_terminal() and not is_dumb():
        from llamagpu.cli.terminal import Terminal  # it imports prompt_toolkit, which pipes do not need

        return Terminal()
    return Lines()


class Session:
    """A conversation: it reads messages, answers them and obeys commands."""

    def __init__(self, llm: LLM, system: str | None, settings: dict[str, Any], as_json: bool = False):
        self._llm, self._settings, self._json = llm, settings, as_json
        self._messages: list[Message] = []
        self._answered = self._failed = 0
        self._retries = 0  # of the last message
        self._greedy = False  # the last answer was generated here, without a draw
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: note(_HELP),
            "/reset": self._reset,
            "/retry": self._retry,
            "/system": self._system,
            "/save": self._save,
            "/load": self._load,
        }
        self._begin([_message("system", system)] if system else [])

    def run(self, reader: Reader) -> int:
        """Talk until /exit or the end of input; the exit code."""
        if on_a_terminal():
            note(f"{self._llm.name} on {self._llm.device.adapter}. /help lists commands.")
        while (typed := reader.read()) is not None:
            try:
                if not self._take(typed):
                    break
            except KeyboardInterrupt:  # it stops the current answer, never the chat
                note("\n(stopped)")
        return 1 if self._failed and not self._answered else 0

    def _take(self, typed: str) -> bool:
        """Answer a message or obey a command; False to leave."""
        text, quoted = unwrap(typed)
        if text.startswith("/") and not quoted:
            return self._obey(text)
        if text:
            self._retries = 0
            self._answer([*self._messages, _message("user", text)])
        return True

    # --- answers ----------------------------------------------------------------------------

    def _answer(self, messages: list[Message]) -> None:
        """Print the answer to the last message and keep both. After a failure the conversation is unchanged."""
        settings = dict(self._settings)
        if "seed" in settings:
            settings["seed"] = (settings["seed"] + self._retries) % _SEEDS
        try:
            kept = fit(self._llm, messages, settings.get("chat_template_kwargs"))
            with self._llm.chat_stream(kept, **settings) as stream:
                _say_dropped(len(messages) - len(kept))
                text = self._print(stream)
        except UsageError as e:
            self._failed += 1
            note(self._failure(e))
        else:
            self._answered += 1
            self._messages = [*kept, _message("assistant", text)]

    def _print(self, stream: Stream) -> str:
        """Print an answer as it comes, and return it. Ctrl-C stops it; then the part so far is returned."""
        pieces: list[str] = []
        stopped = False
        try:
            for piece in stream:
                pieces.append(piece)
                write("" if self._json else piece)
        except KeyboardInterrupt:
            stopped = True
            stream.close()
            if on_a_terminal() and (self._json or not sys.stdout.isatty()):
                note("")  # it ends the line on which the terminal shows ^C
        text, result = "".join(pieces), stream.result
        if self._json:
            text = result.text
            write(json.dumps(result.as_dict(), ensure_ascii=False) + "\n")
        else:
            write("" if text.endswith("\n") else "\n")
        self._greedy = result.seed is None
        self._say_end(result, stopped)
        return text.strip()

    def _say_end(self, result: Result, stopped: bool) -> None:
        if stopped:
            note("(stopped)")
        elif result.context_full:
            note("(cut: the context is full; the next message drops the oldest turns)")
        elif result.finish_reason == "length":
            note("(cut: --max-tokens)")
        if on_a_terminal():
            most = self._llm.context  # the last token of a full context takes no position
            meter = f"({min(result.prompt_tokens + result.completion_tokens, most)} of {most} tokens)"
            note(meter if is_dumb() else click.style(meter, dim=True))

    def _failure(self, error: UsageError) -> str:
        if not isinstance(error, ContextFullError):
            return error_lines(error.what, error.why, "The message was not kept; /reset starts a new conversation.")
        system = any(m["role"] == "system" for m in self._messages)
        alone = "The message and the system message do" if system else "The message alone does"
        shorten = "Shorten one of them" if system else "Shorten it"
        hint = f"{shorten}, or start llamagpu chat with a larger --context if the model has one."
        return error_lines(error.what, f"{alone} not fit; the message was not kept.", hint)

    # --- commands ---------------------------------------------------------------------------

    def _obey(self, line: str) -> bool:
        """Obey a command; False to leave."""
        name, *argument = line.split(maxsplit=1)
        if name in ("/exit", "/quit"):
            return False
        command = self._commands.get(name)
        if command is None:
            note(f"Unknown command {name}.\n{_HELP}")
            return True
        if name in ("/save", "/load") and not argument:
            note(f"{name} needs a file name.")
            return True
        try:
            command(argument[0] if argument else "")
        except UsageError as e:
            note(e.what)
        return True

    def _begin(self, messages: list[Message]) -> None:
        self._messages, self._retries, self._greedy = messages, 0, False

    def _reset(self, _: str) -> None:
        self._begin([m for m in self._messages if m["role"] == "system"])
        note("(forgotten)")

    def _system(self, text: str) -> None:
        self._begin([_message("system", text)] if text else [])
        note("(system message set, conversation forgotten)" if text else "(no system message)")

    def _retry(self, _: str) -> None:
        asked = [i for i, m in enumerate(self._messages) if m["role"] == "user"]
        if not asked:
            note("(no message to answer again)")
            return
        if self._greedy:
            note("(temperature 0 gives the same answer; start the chat with -t 0.8 for another)")
        self._retries += 1
        self._answer(self._messages[: asked[-1] + 1])

    def _save(self, name: str) -> None:
        note(f"({len(self._messages)} messages in {save(self._messages, name)})")

    def _load(self, name: str) -> None:
        messages, path = load(name)
        self._begin(messages)
        note(f"({len(messages)} messages from {path})")


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _say_dropped(count: int) -> None:
    if count:
        dropped = "message was" if count == 1 else f"{count} messages were"
        note(f"(the context is full: the oldest {dropped} dropped)")
