"""Perplexity of a model on a text, for comparing dtypes of one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llamagpu.engine.llm import LLM
from llamagpu.errors import UsageError


@dataclass(frozen=True)
class Perplexity:
    """``perplexity`` is e^``nats_per_token`` over ``tokens`` predicted tokens."""

    perplexity: float
    nats_per_token: float
    tokens: int


def perplexity(
    llm: LLM,
    ids: Sequence[int],
    *,
    window: int = 512,
    stride: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Mean surprise over a text in overlapping windows. Every token is predicted once, from at least
    ``window - stride`` tokens before it, if the text has them (the sliding window of transformers' guide).

    Args:
        ids: the text's tokens, at least 2.
        window: tokens that the model sees at a time, up to its context.
        stride: tokens from a window's start to the next.

    Raises:
        UsageError: the window exceeds the context, or the stride the window, or there is nothing to predict.
    """
    if not 2 <= window <= llm.context:
        raise UsageError(f"A window of {window} tokens is not possible.", f"It must be from 2 to {llm.context}.")
    if not 1 <= stride <= window:
        raise UsageError(f"A stride of {stride} is not possible.", f"It must be from 1 to {window}, the window.")
    if len(ids) < 2:
        raise UsageError("The text has fewer than two tokens.", "There is nothing to predict.")
    total, count, done = 0.0, 0, 1
    for begin in range(0, len(ids), stride):
        part = list(ids[begin : begin + window])
        fresh = begin + len(part) - done  # tokens that no window has predicted yet
        if fresh > 0:
            total += _surprise(llm, part, fresh)
            count += fresh
            done = begin + len(part)
        if progress is not None:
            progress(done, len(ids))
        if done >= len(ids):
            break
    return Perplexity(float(np.exp(total / count)), total / count, count)


def _surprise(llm: LLM, ids: list[int], fresh: int) -> float:
    """Nats of the last ``fresh`` tokens, each predicted from the tokens before it."""
    first = len(ids) - fresh
    rows = llm.logits(ids)[first - 1 : -1].astype(np.float64)
    top = rows.max(axis=1)
    log_sum = top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
    return float((log_sum - rows[np.arange(fresh), ids[first:]]).sum())
