"""Reading messages: the syntax of messages of several lines, and plain lines from standard input."""

from __future__ import annotations

import os
import sys
from typing import Protocol

import click

from llamagpu.cli.output import note
from llamagpu.errors import UsageError

_QUOTE = '"""'
CLEARED = "(/exit to leave)"  # after Ctrl-C at the prompt


class Reader(Protocol):
    """A source of messages and commands."""

    def read(self) -> str | None:
        """The next message as it was typed, quotes and backslashes included; None at the end of input."""


def on_a_terminal() -> bool:
    """Whether the session is interactive: standard input and standard error are terminals."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def is_dumb() -> bool:
    """Whether the terminal shows plain text only, such as a shell inside an editor."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def goes_on(text: str) -> bool:
    """Whether a message needs another line: its three quotes are still open, or a backslash ends it."""
    if not text.lstrip().startswith(_QUOTE):
        return text.endswith("\\")
    text = text.strip()
    return len(text) < 2 * len(_QUOTE) or not text.endswith(_QUOTE)


def unwrap(text: str) -> tuple[str, bool]:
    """The message without its quotes or backslashes, and whether it had three quotes (then it is not a command)."""
    text = text.strip()
    if not text.startswith(_QUOTE):
        return "\n".join(line.removesuffix("\\") for line in text.split("\n")).strip(), False
    end = len(text) if goes_on(text) else -len(_QUOTE)  # the end of input closes quotes too
    inner = text[len(_QUOTE) : end].strip("\n")  # the first line keeps its indentation
    return inner if inner.strip() else "", True


class Lines:
    """Messages from plain lines: of a pipe, a file, or a terminal without line editing."""

    def read(self) -> str | None:
        """The next message; None at the end of input. On a terminal Ctrl-C drops the typed text."""
        while True:
            try:
                text = self._line("> ")
                while text is not None and goes_on(text) and (more := self._line("... ")) is not None:
                    text += "\n" + more
                return text
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
                note("\n" + CLEARED)

    @staticmethod
    def _line(prompt: str) -> str | None:
        if on_a_terminal():
            click.echo(prompt, err=True, nl=False)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as e:
            raise UsageError("The input is not UTF-8 text.", str(e), "Convert it, for example with iconv.") from None
        return line.rstrip("\r\n") if line else None
