"""The keyword arguments of generation, for type checkers; ``sampling_params`` describes and checks them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of ``LLM.generate`` and ``LLM.stream``."""

    max_tokens: int
    temperature: float
    seed: int | None
    stop: str | Sequence[str]
    stop_token_ids: Iterable[int]
    ignore_eos: bool
