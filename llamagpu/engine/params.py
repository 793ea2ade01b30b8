"""Sampling parameters, checked before any work begins."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llamagpu.errors import UsageError
from llamagpu.kernels import Settings
from llamagpu.kernels.sampling import MOST_LOGPROBS

_RANGES = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0, 10),
    "presence_penalty": (-100, 100),
    "frequency_penalty": (-100, 100),
}


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen (``settings``, ``bias``) and when a sequence ends."""

    max_tokens: int
    settings: Settings
    bias: Mapping[int, float]
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    ignore_eos: bool


def sampling_params(
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    stop_token_ids: Iterable[int] = (),
    ignore_eos: bool = False,
    logprobs: int | None = None,
) -> SamplingParams:
    """Checked parameters; ``GenerateOptions`` describes them.

    Raises:
        UsageError: a value is out of its range.
    """
    _whole("max_tokens", max_tokens, 1)
    _whole("top_k", top_k, 0)
    numbers = {
        "temperature": temperature,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
    }
    for name, value in numbers.items():
        _number(name, value, *_RANGES[name])
    _check(temperature == 0 or temperature >= 1e-3, "temperature", temperature, "0, or from 0.001 to 100")
    _check(top_p > 0, "top_p", top_p, "above 0 and at most 1")
    _check(min_p < 1, "min_p", min_p, "from 0 to below 1")
    _check(repetition_penalty > 0, "repetition_penalty", repetition_penalty, "above 0 and at most 10")
    if seed is not None:
        _whole("seed", seed, 0, 2**32 - 1)
    if logprobs is not None:
        _whole("logprobs", logprobs, 1, MOST_LOGPROBS)
    bias = _bias(logit_bias or {})
    settings = Settings(
        seed=secrets.randbits(32) if seed is None else seed,
        top_k=min(top_k, 2**32 - 1),
        logprobs=logprobs or 0,
        biased=bool(bias),
        **{name: float(value) for name, value in numbers.items()},
    )
    return SamplingParams(max_tokens, settings, bias, _stops(stop), _stop_ids(stop_token_ids), ignore_eos)


def _bias(given: Mapping[int, float]) -> dict[int, float]:
    for token, value in given.items():
        _whole("a token of logit_bias", token, 0)
        _number(f"logit_bias[{token}]", value, -10000, 10000)
    return dict(given)


def _stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    _check(all(isinstance(s, str) and s for s in stops), "stop", stop, "a string, or strings, none of them empty")
    return stops


def _stop_ids(given: Iterable[int]) -> frozenset[int]:
    ids = frozenset(given)
    _check(all(isinstance(i, int) and i >= 0 for i in ids), "stop_token_ids", given, "token ids")
    return ids


def _check(good: bool, name: str, value: object, allowed: str) -> None:
    if not good:
        raise UsageError(f"{name} is {value!r}.", f"It must be {allowed}.")


def _whole(name: str, value: object, low: int, high: int | None = None) -> None:
    allowed = f"a whole number from {low}" + ("" if high is None else f" to {high}")
    good = isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high)
    _check(good, name, value, allowed)


def _number(name: str, value: object, low: float, high: float) -> None:
    good = isinstance(value, (int, float)) and math.isfinite(value) and low <= value <= high
    _check(good, name, value, f"from {low} to {high}")
