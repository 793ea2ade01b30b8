"""Sampling parameters, checked before any work begins."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llamagpu.errors import UsageError


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when a sequence ends. ``seed`` is drawn where none is given, so it can be repeated."""

    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False


def sampling_params(
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    stop_token_ids: Iterable[int] = (),
    ignore_eos: bool = False,
) -> SamplingParams:
    """Checked parameters.

    Args:
        max_tokens: at most so many new tokens, at least 1.
        temperature: 0 is greedy; otherwise logits are divided by it before the draw, up to 100.
        seed: 0 to 2³² - 1; the same seed, prompt, device and tuning give the same text. None draws one.
        stop: a string or strings that end the text; they are not part of it.
        stop_token_ids: ids that end the text besides the model's own.
        ignore_eos: go on when the model ends its text.

    Raises:
        UsageError: a value is out of its range.
    """
    _check(isinstance(max_tokens, int) and max_tokens >= 1, "max_tokens", max_tokens, "a whole number from 1")
    number = isinstance(temperature, (int, float)) and math.isfinite(temperature) and 0 <= temperature <= 100
    _check(number and (temperature == 0 or temperature >= 1e-3), "temperature", temperature, "0, or from 0.001 to 100")
    _check(seed is None or (isinstance(seed, int) and 0 <= seed < 2**32), "seed", seed, "from 0 to 4294967295")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    _check(all(isinstance(s, str) and s for s in stops), "stop", stop, "a string, or strings, none of them empty")
    ids = frozenset(stop_token_ids)
    _check(all(isinstance(i, int) and i >= 0 for i in ids), "stop_token_ids", stop_token_ids, "token ids")
    seed = secrets.randbits(32) if seed is None else seed
    return SamplingParams(max_tokens, float(temperature), seed, stops, ids, ignore_eos)


def _check(good: bool, name: str, value: object, allowed: str) -> None:
    if not good:
        raise UsageError(f"{name} is {value!r}.", f"It must be {allowed}.")
