"""Reading messages: what a message of several lines looks like, and plain lines from standard input."""

from __future__ import annotations

import os
import sys
from typing import Protocol

import click

from llamagpu.cli.output import note
from llamagpu.errors import UsageError

_QUOTE = '"""'
CLEARED = "(/exit leaves)"  # after Ctrl-C at the prompt


class Reader(Protocol):
    """Where messages and commands come from."""

    def read(self) -> str | None:
        """The next message as it was typed, quotes and backslashes included; None at the end of input."""


def on_a_terminal() -> bool:
    """Whether somebody types, and sees what goes to standard error."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def is_dumb() -> bool:
    """Whether the terminal shows text only, as a shell inside an editor does."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def goes_on(text: str) -> bool:
    """Whether a message needs another line: its three quotes are still open, or a backslash ends it."""
    if not text.lstrip().startswith(_QUOTE):
        return text.endswith("\\")
    text = text.strip()
    return len(text) < 2 * len(_QUOTE) or not text.endswith(_QUOTE)


def unwrap(text: str) -> tuple[str, bool]:
    """The message in what was typed, and whether it stood in three quotes (so that it cannot be a command)."""
    text = text.strip()
    if not text.startswith(_QUOTE):
        return "\n".join(line.removesuffix("\\") for line in text.split("\n")).strip(), False
    end = len(text) if goes_on(text) else -len(_QUOTE)  # the end of input closes quotes too
    inner = text[len(_QUOTE) : end].strip("\n")  # the first line keeps its indentation
    return inner if inner.strip() else "", True


class Lines:
    """Messages from plain lines: of a pipe or a file, or of a terminal that cannot edit them."""

    def read(self) -> str | None:
        """The next message; None at the end of input. On a terminal Ctrl-C drops what was typed."""
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
