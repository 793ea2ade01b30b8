"""Checks of callers' values, which return plain lists and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from llamagpu.errors import UsageError, shown

_MOST_NAME = 200  # characters of an adapter's name


def items(given: Any, kind: str) -> list[Any]:
    """A list of the items of an iterable, which may be a generator or an array."""
    if isinstance(given, (str, bytes, Mapping)):
        raise UsageError(f"{shown(given)} is not {kind}.", "It must be a list.")
    try:
        return list(given)
    except TypeError:
        raise UsageError(f"{shown(given)} is not {kind}.", "It must be text or a list.") from None


def whole_number(value: Any, kind: str) -> int:
    """Any whole number, including numpy's, as a Python int; bools and floats are refused."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UsageError(f"{shown(value)} is not {kind}.", "It must be a whole number.")
    return int(value)


def whole_in(name: str, value: Any, low: int, high: int | None = None) -> int:
    """A whole number in a range; ``name`` is the argument's name."""
    allowed = f"a whole number from {low}" + ("" if high is None else f" to {high}")
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        raise out_of_range(name, value, allowed)
    return int(value)


def number_in(name: str, value: Any, low: float, high: float, allowed: str = "") -> float:
    """A number in a range."""
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not low <= number <= high:
        raise out_of_range(name, value, allowed or f"from {low} to {high}")
    return number


def out_of_range(name: str, value: Any, allowed: str) -> UsageError:
    """The error for an argument that is not allowed."""
    return UsageError(f"{name} is {shown(value)}.", f"It must be {allowed}.")


def adapter_name(device: Any) -> str:
    """The name or number of an adapter, as ``gpu.open`` takes it."""
    if isinstance(device, str):
        return device
    return str(whole_number(device, "a device: auto, a number, a kind, a backend, a name, or an open Device"))


def plain(value: Any) -> Any:
    """A value of JSON, Arrow or numpy as plain Python; NaN, which pandas writes for a missing number, as None."""
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        value = value.tolist()
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple, set, frozenset)) else value


def checked_adapters(given: Any) -> dict[str, str]:
    """The paths of adapters by their names.

    Raises:
        UsageError: it is no mapping of names to paths.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UsageError(f"adapters is {shown(given)}.", "It must be a dictionary of names and paths.")
    return {checked_name(name): checked_path(path) for name, path in given.items()}


def checked_name(name: Any) -> str:
    """The name of an adapter; raises UsageError for other values."""
    if not isinstance(name, str) or not name.strip() or len(name) > _MOST_NAME or not name.isprintable():
        raise UsageError(f"{shown(name)} is not a name of an adapter.", f"It is text of up to {_MOST_NAME} characters.")
    return name


def checked_path(path: Any) -> str:
    """The path of an adapter; raises UsageError for other values."""
    if not isinstance(path, (str, Path)) or not str(path).strip():
        raise UsageError(f"{shown(path)} is not a LoRA adapter.", "It is a directory, or a GGUF file.")
    return str(path)
