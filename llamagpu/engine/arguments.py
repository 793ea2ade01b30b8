"""What callers hand in, turned into plain lists and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

from llamagpu.errors import UsageError


def items(given: Any, what: str) -> list[Any]:
    """A list of what an iterable holds, which may be a generator or an array."""
    if isinstance(given, (str, bytes, Mapping)):
        raise UsageError(f"{given!r:.60} is not {what}.", "It must be a list.")
    try:
        return list(given)
    except TypeError:
        raise UsageError(f"{given!r:.60} is not {what}.", "It must be text or a list.") from None


def whole_number(value: Any, what: str) -> int:
    """A Python int of any whole number, numpy's too; no bool, no float."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UsageError(f"{value!r:.60} is not {what}.", "It must be a whole number.")
    return int(value)


def adapter_name(device: Any) -> str:
    """The name or number of an adapter, as ``gpu.open`` takes it."""
    if isinstance(device, str):
        return device
    return str(whole_number(device, "a device: auto, a number, a kind, a backend, a name, or an open Device"))
