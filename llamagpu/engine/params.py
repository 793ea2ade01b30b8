"""The keyword arguments of generation: their names and defaults, and their checks before any work begins."""

from __future__ import annotations

import functools
import inspect
import secrets
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Any, ParamSpec, TypedDict, TypeVar

import numpy as np

from llamagpu.engine.arguments import items, number_in, out_of_range, plain, whole_in
from llamagpu.errors import UsageError
from llamagpu.kernels.step import LIKELY, Settings
from llamagpu.text.shape import SHAPES, Shape, schema_dict, shape_of

P = ParamSpec("P")
R = TypeVar("R")
_SEEDS = 2**32
_WHOLE = ("max_tokens", "top_k", "seed")  # pandas stores whole numbers as floats where some are missing


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of ``LLM.generate`` and ``LLM.stream``.

    They work in this order: penalties, bias, temperature, top-k, top-p, min-p, the draw.

    max_tokens: the most new tokens, at least 1.
    temperature: 0 is greedy; otherwise logits are divided by it before the draw, up to 100.
    top_k: draw from the k likeliest tokens; 0 is all.
    top_p: draw from the likeliest tokens whose probabilities reach p, above 0 up to 1.
    min_p: draw from the tokens with at least this share of the likeliest one's probability, from 0 to below 1.
    repetition_penalty: divides positive logits of tokens in prompt and text, and multiplies negative ones; above 0
        up to 10.
    presence_penalty: subtracted from the logits of tokens in the text, -100 to 100.
    frequency_penalty: subtracted from them once for every time they occur in it, -100 to 100.
    logit_bias: added to the logits of these token ids, -10000 to 10000.
    seed: 0 to 2³² - 1; the same seed, prompt, device and tuning give the same text. None draws one.
    stop: a string or strings that end the text; they are not part of it.
    stop_token_ids: ids that end the text besides the model's own.
    ignore_eos: continue when the model ends its text.
    logprobs: return the log-probability (of the raw logits) of every token, and of this many likeliest ones, 1 to 20.
    adapter: the name of a loaded LoRA adapter; None is the model alone.
    adapter_scale: a factor of the adapter's change, -100 to 100.

    At most one of these says what the whole text must look like; ``llamagpu.text.shape`` describes them. They need the
    extra ``guided``. A text that ``max_tokens`` cuts is a beginning of such a text, and its finish_reason is "length".

    json_schema: the text is JSON that is valid by a schema: a dictionary, its text, a Pydantic model, a dataclass or
        another type with hints.
    json_object: the text is a JSON object.
    regex: the text matches a regular expression (the syntax of Rust's regex, without look-around; ``\\d``,
        ``\\w`` and ``\\s`` match ASCII only).
    choices: the text is one of these strings.
    grammar: the text follows a grammar (llguidance's variant of Lark).
    """

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | List[str] | None
    stop_token_ids: Iterable[int] | None
    ignore_eos: bool
    logprobs: int | None
    adapter: str | None
    adapter_scale: float
    json_schema: Any
    json_object: bool
    regex: str | None
    choices: List[str] | None
    grammar: str | None


DEFAULTS: dict[str, Any] = {
    "max_tokens": 256,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": None,
    "seed": None,
    "stop": None,
    "stop_token_ids": None,
    "ignore_eos": False,
    "logprobs": None,
    "adapter": None,
    "adapter_scale": 1.0,
    "json_schema": None,
    "json_object": False,
    "regex": None,
    "choices": None,
    "grammar": None,
}


def takes_options(fn: Callable[P, R]) -> Callable[P, R]:
    """Show the keyword arguments of generation with their defaults in ``help(fn)``, and refuse others by fn's name."""
    return taking(fn, GenerateOptions, DEFAULTS)


def taking(fn: Callable[P, R], declared: type, defaults: Mapping[str, Any]) -> Callable[P, R]:
    """As ``takes_options``, for the keyword arguments that a ``TypedDict`` declares."""
    signature = inspect.signature(fn)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    annotations = {name: getattr(a, "__forward_arg__", a) for name, a in declared.__annotations__.items()}
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotations[name])
        for name, default in defaults.items()
    ]

    @functools.wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        unknown = sorted(kwargs.keys() - defaults.keys() - {p.name for p in own})
        if unknown:
            known = ", ".join(defaults)
            raise TypeError(f"{fn.__name__}() got an unexpected keyword argument {unknown[0]!r}. It takes: {known}.")
        return fn(*args, **kwargs)

    wrapper.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return wrapper


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen (``settings``, ``bias``), when a sequence ends, the adapter that it uses, and what its text
    looks like."""

    max_tokens: int
    settings: Settings
    bias: Mapping[int, float]
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    ignore_eos: bool
    adapter: str | None
    adapter_scale: float
    shape: Shape | None = None


def sampling_params(vocab_size: int | None = None, **options: Any) -> SamplingParams:
    """Checked parameters; ``GenerateOptions`` describes them. Token ids are checked against ``vocab_size`` if it is
    known.

    Raises:
        UsageError: a value is out of its range.
        TypeError: an option is unknown.
    """
    unknown = options.keys() - DEFAULTS.keys()
    if unknown:
        raise TypeError(f"Unknown option {min(unknown)!r}. Known: {', '.join(DEFAULTS)}.")
    o = DEFAULTS | options
    bias = _bias(o["logit_bias"], vocab_size)
    if not isinstance(o["ignore_eos"], (bool, np.bool_)):
        raise out_of_range("ignore_eos", o["ignore_eos"], "true or false")
    return SamplingParams(
        whole_in("max_tokens", o["max_tokens"], 1),
        _settings(o, bool(bias)),
        bias,
        _stops(o["stop"]),
        _stop_ids(o["stop_token_ids"], vocab_size),
        bool(o["ignore_eos"]),
        *adapter_params(o["adapter"], o["adapter_scale"]),
        shape_of(**{name: o[name] for name in SHAPES}),
    )


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as plain data of JSON; a schema may be given as a type."""
    schema = settings.get("json_schema")
    given = {**settings} if schema is None else {**settings, "json_schema": schema_dict(schema)}
    return {name: plain(value) for name, value in given.items()}


def adapter_params(name: Any, scale: Any) -> tuple[str | None, float]:
    """The name of an adapter, or None, and its factor.

    Raises:
        UsageError: the name is not text, or the factor is out of its range.
    """
    if name is not None and not isinstance(name, str):
        raise out_of_range("adapter", name, "the name of a loaded adapter")
    return name, number_in("adapter_scale", scale, -100, 100)


def row_settings(row: Mapping[str, Any], names: Iterable[str] = tuple(DEFAULTS)) -> dict[str, Any]:
    """The settings that a row of data has: an object of JSON, or a row of Arrow or pandas. Those that are None or NaN
    are left out."""
    present = {name: plain(row[name]) for name in names if name in row}
    return {name: _row_setting(name, value) for name, value in present.items() if value is not None}


def _row_setting(name: str, value: Any) -> Any:
    """A row's setting as ``GenerateOptions`` takes it."""
    if name in _WHOLE and isinstance(value, float) and value.is_integer():
        return int(value)
    if name == "logit_bias" and isinstance(value, dict):  # the keys of JSON objects are text
        return {int(k) if str(k).isdecimal() else k: v for k, v in value.items() if v is not None}
    return value


def choice_settings(settings: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The settings of choice ``index`` of a prompt: its seed is the given one plus the index, so that choices differ
    and can be repeated."""
    seed = settings.get("seed")
    if seed is None:
        return {**settings}
    return {**settings, "seed": (whole_in("seed", seed, 0, _SEEDS - 1) + index) % _SEEDS}


def _settings(o: Mapping[str, Any], biased: bool) -> Settings:
    temperature = number_in("temperature", o["temperature"], 0, 100)
    if 0 < temperature < 1e-3:
        raise out_of_range("temperature", o["temperature"], "0, or from 0.001 to 100")
    smallest = 5e-324  # excludes 0
    return Settings(
        temperature=temperature,
        seed=secrets.randbelow(_SEEDS) if o["seed"] is None else whole_in("seed", o["seed"], 0, _SEEDS - 1),
        top_k=min(whole_in("top_k", o["top_k"], 0), _SEEDS - 1),
        top_p=number_in("top_p", o["top_p"], smallest, 1, "above 0 and at most 1"),
        min_p=number_in("min_p", o["min_p"], 0, 1 - 2.0**-53, "from 0 to below 1"),
        repetition_penalty=number_in(
            "repetition_penalty", o["repetition_penalty"], smallest, 10, "above 0 and at most 10"
        ),
        presence_penalty=number_in("presence_penalty", o["presence_penalty"], -100, 100),
        frequency_penalty=number_in("frequency_penalty", o["frequency_penalty"], -100, 100),
        logprobs=0 if o["logprobs"] is None else whole_in("logprobs", o["logprobs"], 1, LIKELY),
        biased=biased,
    )


def _bias(given: Any, vocab_size: int | None) -> dict[int, float]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise out_of_range("logit_bias", given, "a mapping from token ids to numbers")
    out = {}
    for token, value in given.items():
        id = _token_id("a token of logit_bias", token, vocab_size)
        out[id] = number_in(f"logit_bias[{id}]", value, -10000, 10000)
    return out


def _stops(given: Any) -> tuple[str, ...]:
    allowed = "a non-empty string, or a list of them"
    if given is None:
        return ()
    if not isinstance(given, (str, Iterable)):
        raise out_of_range("stop", given, allowed)
    stops = (given,) if isinstance(given, str) else tuple(given)
    if not all(isinstance(s, str) and s for s in stops):
        raise out_of_range("stop", given, allowed)
    return stops


def _stop_ids(given: Any, vocab_size: int | None) -> frozenset[int]:
    if given is None:
        return frozenset()
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes, Mapping)):
        raise out_of_range("stop_token_ids", given, "token ids")
    return frozenset(_token_id("an id of stop_token_ids", i, vocab_size) for i in items(given, "token ids"))


def _token_id(name: str, value: Any, vocab_size: int | None) -> int:
    id = whole_in(name, value, 0)
    if vocab_size is not None and id >= vocab_size:
        raise UsageError(f"{name} is {id}.", f"Token ids of this model run from 0 to {vocab_size - 1}.")
    return id
