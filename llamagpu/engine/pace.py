"""The pace of drafts: how many tokens are guessed, and how often."""

from __future__ import annotations

from dataclasses import dataclass

MOST = 15  # guesses for one step: with the sequence's own row they fill a batch of 16
_FIRST = 4  # guesses before anything is known of a sequence
_IDLE, _LONGEST_PAUSE = 8, 128  # steps


@dataclass
class Pace:
    """How many tokens to guess for a sequence, and how often: more after right guesses, fewer and with longer pauses
    after wrong ones, so that a draft that is always wrong costs little."""

    width: int = _FIRST
    pause: int = 0  # steps without guesses before the next ones
    _misses: int = 0

    @property
    def due(self) -> bool:
        """Whether the next step should have guesses."""
        return self.pause == 0

    def stepped(self) -> None:
        """A step without guesses was launched."""
        self.pause = max(0, self.pause - 1)

    def judged(self, guessed: int, right: int) -> None:
        """``right`` of the guesses were right; without any there was nothing to guess from."""
        if not guessed:
            self.pause = _IDLE
        elif right:
            self._misses = 0
            self.width = min(MOST, 2 * self.width) if right == guessed else max(1, right + 1)
        else:
            self._misses += 1
            self.width = max(1, self.width // 2)
            self.pause = min(_LONGEST_PAUSE, 4 << self._misses)
