"""What an engine counts."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Counters:
    """What a model counted since it was loaded, and how full its cache is now.

    Attributes:
        preemptions: times that a text gave its pages of the cache to an older one, and went on later.
        drafted: tokens that were guessed (``speculate``).
        accepted: guessed tokens that were right, which cost no step of their own.
        pages: pages of the cache.
        pages_used: those that running texts and bound sessions hold. What the cache keeps for later prompts is free.
    """

    preemptions: int = 0
    drafted: int = 0
    accepted: int = 0
    pages: int = 0
    pages_used: int = 0

    @property
    def cache_usage(self) -> float:
        """The part of the cache's pages that is used, from 0 to 1."""
        return self.pages_used / self.pages if self.pages else 0.0

    def after(self, before: Counters) -> Counters:
        """These of a process that took the place of another one, which counted ``before``."""
        return replace(
            self,
            preemptions=before.preemptions + self.preemptions,
            drafted=before.drafted + self.drafted,
            accepted=before.accepted + self.accepted,
        )
