"""Sampling parameters, checked before any work begins."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

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
    stop: str | Sequence[str] | None = (),
    stop_token_ids: Iterable[int] | None = (),
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
        seed=secrets.randbits(32) if seed is None else int(seed),
        top_k=min(int(top_k), 2**32 - 1),
        logprobs=int(logprobs or 0),
        biased=bool(bias),
        **{name: float(value) for name, value in numbers.items()},
    )
    return SamplingParams(int(max_tokens), settings, bias, _stops(stop), _stop_ids(stop_token_ids), ignore_eos)


def _bias(given: Mapping[int, float]) -> dict[int, float]:
    _check(isinstance(given, Mapping), "logit_bias", given, "a mapping from token ids to numbers")
    for token, value in given.items():
        _whole("a token of logit_bias", token, 0)
        _number(f"logit_bias[{token}]", value, -10000, 10000)
    return {int(token): float(value) for token, value in given.items()}


def _stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    _check(stop is None or isinstance(stop, Iterable), "stop", stop, "a string, or strings")
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    _check(all(isinstance(s, str) and s for s in stops), "stop", stop, "a string, or strings, none of them empty")
    return stops


def _stop_ids(given: Iterable[int] | None) -> frozenset[int]:
    _check(given is None or isinstance(given, Iterable), "stop_token_ids", given, "token ids")
    ids = tuple(given or ())
    _check(all(isinstance(i, Integral) and i >= 0 for i in ids), "stop_token_ids", given, "token ids")
    return frozenset(int(i) for i in ids)


def _check(good: bool, name: str, value: object, allowed: str) -> None:
    if not good:
        raise UsageError(f"{name} is {value!r}.", f"It must be {allowed}.")


def _whole(name: str, value: object, low: int, high: int | None = None) -> None:
    allowed = f"a whole number from {low}" + ("" if high is None else f" to {high}")
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    good = whole and low <= value and (high is None or value <= high)  # type: ignore[operator]
    _check(good, name, value, allowed)


def _number(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, Real) and not isinstance(value, bool)
    good = number and math.isfinite(value) and low <= value <= high  # type: ignore[arg-type,operator]
    _check(good, name, value, f"from {low} to {high}")
