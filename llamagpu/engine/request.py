"""One sequence on its way through the engine."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.errors import LlamaGPUError
from llamagpu.kernels import Settings


@dataclass(frozen=True)
class Token:
    """A new token; with logprobs, its log-probability by the raw logits and the likeliest (id, log-probability)."""

    id: int
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)


class NotFinite(LlamaGPUError):
    """A request's logits hold NaN or infinity."""

    def __init__(self, tokens: int):
        super().__init__(
            f"The logits are not finite after {tokens} tokens.",
            "A NaN or an infinity came out of the model: broken weights, or values beyond float16.",
            "Check the checkpoint, or use --dtype float32 and --kv-dtype float32.",
        )


@dataclass(eq=False)
class Conversation:
    """What the cache keeps of a finished request, for the next prompt that begins the same. A slot of -1 is nothing."""

    tokens: list[int] = field(default_factory=list)
    slot: int = -1
    pages: list[int] = field(default_factory=list)

    def shared(self, prompt: list[int]) -> int:
        """How many tokens at the prompt's beginning are in the cache; at least its last one must be run again."""
        most = min(len(self.tokens), len(prompt) - 1) if self.slot >= 0 else 0
        return next((i for i in range(most) if self.tokens[i] != prompt[i]), most)


@dataclass(eq=False)
class Request:
    """What is asked for, and how far it is.

    ``events`` carries Tokens, then a str (the finish reason), an array (logits) or an exception.
    """

    prompt: list[int]
    limit: int  # tokens that may be made before max_tokens or the context ends it
    settings: Settings = field(default_factory=Settings)
    stop_ids: frozenset[int] = frozenset()
    bias: Mapping[int, float] = field(default_factory=dict)
    want_logits: bool = False
    conversation: Conversation | None = None
    events: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    cancelled: threading.Event = field(default_factory=threading.Event)
    slot: int = -1
    pages: list[int] = field(default_factory=list)
    length: int = 0  # positions in the cache
    last: int = 0  # the newest token, not in the cache yet
    made: int = 0
    in_flight: int = 0  # steps that were launched and have not landed
    tokens: list[int] = field(default_factory=list)  # the new ones
    logits: list[npt.NDArray[np.float32]] = field(default_factory=list)

    @property
    def most(self) -> int:
        """Positions that the sequence may come to take; its last token needs none."""
        return len(self.prompt) + (0 if self.want_logits else self.limit - 1)

    @property
    def last_position(self) -> int:
        """The position of the last token that may be made."""
        return len(self.prompt) + self.limit - 1

    @property
    def prefilled(self) -> bool:
        return self.length >= len(self.prompt)
