"""Which sequences run next: the order of admission, packs of prompts, batches of steps, and who gives way."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from llamagpu.engine.counters import Counters
from llamagpu.engine.request import Draft, Sequence
from llamagpu.model.cache import PagedCache

_SHORT = 4  # a prompt is short beside one that has so many times its tokens left


class Scheduler:
    """The sequences of an engine. It decides, and runs nothing.

    Attributes:
        waiting: not admitted yet; the first one is admitted next.
        active: with a slot and pages; those that ran least recently come first.
        preemptions, drafted, accepted: see ``Counters``.
    """

    def __init__(self) -> None:
        self.waiting: deque[Sequence] = deque()
        self.active: list[Sequence] = []
        self.preemptions = self.drafted = self.accepted = 0
        self._short_first = False  # whether the last pass was one of short prompts

    def counters(self, cache: PagedCache) -> Counters:
        """What was counted, and how full the cache is. From any thread."""
        used = cache.total - cache.free_pages
        return Counters(self.preemptions, self.drafted, self.accepted, cache.total, used)

    @property
    def longest(self) -> int:
        """The most positions that one of the sequences may come to take."""
        return max((s.request.most for s in (*self.active, *self.waiting)), default=0)

    @property
    def ready(self) -> list[Sequence]:
        """Sequences that decode."""
        return [s for s in self.active if s.prefilled and not s.request.want_logits]

    def prompts(self) -> list[Sequence]:
        """Sequences whose prompts are not complete, the oldest first. One that must run alone is the only one.

        Every other time these are the short ones alone, if the oldest is long: they do not wait for its end, and it
        waits for each pass of theirs once.
        """
        found = sorted((s for s in self.active if s.length < s.prefill_end), key=lambda s: s.number)
        if alone := [s for s in found if s.alone]:
            return alone[:1]
        left = [s.prefill_end - s.length for s in found]
        short = [s for s, n in zip(found, left, strict=True) if _SHORT * n <= left[0]]
        self._short_first = bool(short) and not self._short_first
        return short if self._short_first else found

    def replaying(self) -> Sequence | None:
        """The oldest sequence whose tokens must be replayed."""
        return min((s for s in self.active if s.replays), key=lambda s: s.number, default=None)

    def steps(self) -> list[Sequence]:
        """Sequences that may be in the next step. One that must run alone is the only one."""
        more = [s for s in self.ready if s.made + s.in_flight < s.request.limit]
        return next(([s] for s in more if s.alone), more)

    def ran(self, batch: Iterable[Sequence]) -> None:
        """Put sequences that ran behind the others."""
        done = set(batch)
        self.active = [s for s in self.active if s not in done] + [s for s in self.active if s in done]

    def youngest(self) -> Sequence:
        """The sequence that gives way if pages run out."""
        return max(self.active, key=lambda s: s.number)

    def preempt(self, sequence: Sequence) -> None:
        """Send a sequence, whose pages were taken, back to wait: it is admitted first."""
        self.active.remove(sequence)
        sequence.restart()
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def judged(self, draft: Draft, right: int) -> None:
        """``right`` tokens of a draft were right."""
        if draft.pace is not None:
            draft.pace.judged(len(draft.tokens), right)
            self.drafted += len(draft.tokens)
            self.accepted += right

    def restart(self) -> None:
        """Send all sequences back to wait, in their order, without pages."""
        everything = sorted((*self.active, *self.waiting), key=lambda s: s.number)
        self.active.clear()
        self.waiting = deque(everything)
        for sequence in everything:
            sequence.restart()

    def clear(self) -> list[Sequence]:
        """Drop all sequences, and return them."""
        everything = [*self.active, *self.waiting]
        self.active.clear()
        self.waiting.clear()
        return everything
