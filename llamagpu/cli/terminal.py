"""Line editing and history on a terminal, by prompt_toolkit. Import it only for interactive use."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory
from prompt_toolkit.output import create_output

from llamagpu import gpu
from llamagpu.cli.output import note
from llamagpu.cli.reading import CLEARED, goes_on


class Terminal:
    """Messages from a terminal. The prompt goes to standard error, because standard output is for answers."""

    def __init__(self) -> None:
        # Enter begins a new line while the message continues, so that the history holds it as one entry.
        self._session: PromptSession[str] = PromptSession(
            "> ",
            output=create_output(stdout=sys.stderr),
            history=_History(gpu.cache_folder() / "chat_history"),
            multiline=Condition(lambda: goes_on(self._session.default_buffer.text)),
            prompt_continuation="... ",
            enable_suspend=True,
        )

    def read(self) -> str | None:
        """The next message; None after Ctrl-D. Ctrl-C drops the typed text."""
        while True:
            try:
                return self._session.prompt()
            except EOFError:
                return None
            except KeyboardInterrupt:
                note(CLEARED)


class _History(FileHistory):
    """A history file that only its owner can read. If the file cannot be used, the history stays in memory."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._path = path

    def load_history_strings(self) -> Iterable[str]:
        try:
            return super().load_history_strings()
        except OSError:
            return ()

    def store_string(self, string: str) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            super().store_string(string)
        except OSError:
            pass
