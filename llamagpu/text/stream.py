"""Streaming decode of token ids to text: never half a character, never a part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from llamagpu.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_WINDOW = 16  # ids of the prompt before the new ones; enough for every character


class TextStream:
    """Incremental decoding: ``push`` ids, take text. All pieces together are the text that the ids add to the prompt.

    A window of ids is decoded with and without the new ones, and the difference is the new text. If it ends with
    U+FFFD, that is held back, because an unfinished character decodes to it. The window begins with ids whose text was
    already returned (at first the end of the prompt), because decoders treat the first token differently: they drop
    its leading space. After a special token a new text begins.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), *, skip_special: bool = True):
        self._tokenizer, self._skip = tokenizer, skip_special
        self._ids = _after_special(tokenizer, prompt)[-_WINDOW:]
        self._begin = 0  # of the window
        self._read = len(self._ids)  # ids whose text was returned
        self._out = 0  # characters of the later ids that were returned too

    def push(self, token: int) -> str:
        """Add an id; returns the text that is now certain."""
        if self._skip and token in self._tokenizer.special_ids:
            return ""
        self._ids.append(token)
        text = self._pending()
        if text.endswith(_REPLACEMENT):
            out = text[self._out : -1]
            self._out += len(out)
            return out
        return self._emit(text)

    def flush(self) -> str:
        """The text still held back; bytes that never became a character are U+FFFD."""
        return self._emit(self._pending())

    def _pending(self) -> str:
        decode = self._tokenizer.decode
        before = decode(self._ids[self._begin : self._read], skip_special=False)
        return decode(self._ids[self._begin :], skip_special=False)[len(before) :]

    def _emit(self, text: str) -> str:
        out, self._out = text[self._out :], 0
        if text:
            self._begin, self._read = self._read, len(self._ids)
        return out


def begins_text(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether the ids after a prompt begin a text, so that decoders may drop a space that begins it."""
    return not _after_special(tokenizer, prompt)


def _after_special(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """The ids after the last special token."""
    last = next((i for i in range(len(ids) - 1, -1, -1) if ids[i] in tokenizer.special_ids), -1)
    return list(ids[last + 1 :])


class StopFilter:
    """Passes text up to the first stop string, and holds back text that may begin one."""

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Add text; returns the text that is certainly not part of a stop string; nothing once ``stopped``."""
        if self.stopped:
            return ""
        self._held += text
        found = [at for at in (self._held.find(s) for s in self._stops) if at >= 0]
        if found:
            self.stopped = True
            out, self._held = self._held[: min(found)], ""
            return out
        keep = max((self._overlap(s) for s in self._stops), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def flush(self) -> str:
        """The text that was held back and did not become a stop string."""
        out, self._held = self._held, ""
        return out

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins this stop string."""
        most = min(len(stop) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if self._held.endswith(stop[:n])), 0)
