"""What fits an adapter: its memory as far as it is known, its binding limit, and the bound that the user sets."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from llamagpu.errors import UsageError, shown
from llamagpu.gpu.probe import video_memory

if TYPE_CHECKING:
    from llamagpu.gpu.adapter import Adapter
    from llamagpu.gpu.device import Device

_SHARE = 0.9  # of the free memory; drivers and other programs need the rest
_VARIABLE = "LLAMAGPU_MEMORY_LIMIT"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|[KMGT]i?)B?", re.IGNORECASE)
_UNITS = {unit + i: base**power for power, unit in enumerate("KMGT", 1) for i, base in (("", 1000), ("I", 1024))}


def parse_bytes(value: Any, name: str = "max_memory") -> int | None:
    """A number of bytes: an integer, or text such as ``4GB``, ``512MB`` or ``1.5GiB``; None stays None.

    Raises:
        UsageError: it is neither, or less than 1. ``name`` is the argument's name.
    """
    if value is None:
        return None
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found:
        size = int(float(found[1]) * _UNITS.get(found[2].upper(), 1))
    else:
        size = value if isinstance(value, int) and not isinstance(value, bool) else 0
    if size < 1:
        raise UsageError(
            f"{name} is {shown(value)}.", "It must be a number of bytes, at least 1, such as 4GB, 512MB or 1.5GiB."
        )
    return size


@dataclass(frozen=True)
class Capacity:
    """What decides whether a model fits an adapter.

    Attributes:
        name: the adapter in messages.
        kind: discrete, integrated, software or other.
        free: bytes that may still be allocated; None if that is unknown.
        binding: bytes that one binding of one buffer can hold.
        woven: whether weights are padded to 64 rows, as the tuning of software adapters wants them.
    """

    name: str
    kind: str
    free: int | None
    binding: int
    woven: bool


def device_capacity(device: Device) -> Capacity:
    """The capacity of an open device."""
    adapter, memory = device.adapter, device.memory
    free, woven = memory.ledger.free_bytes(), device.tuning.order == "woven"
    return Capacity(str(adapter), adapter.kind, free, memory.largest_binding, woven)


def adapter_capacity(adapter: Adapter, most: int | str | None = None) -> Capacity:
    """The capacity of an adapter that would be opened with the limit ``most``."""
    free, software = memory_limit(adapter, most), adapter.kind == "software"
    return Capacity(str(adapter), adapter.kind, free, adapter.largest_binding, software)


def memory_limit(adapter: Adapter, most: int | str | None = None) -> int | None:
    """Bytes that buffers may take together on an adapter; None if nothing bounds them.

    An adapter that shares the host's memory has 90 % of what is free there: software drivers overcommit, and without a
    limit the operating system would kill the process. A discrete GPU has 90 % of its own memory, if that is known
    (``video_memory``). ``LLAMAGPU_MEMORY_LIMIT`` takes the place of both. ``most`` bounds all of them.

    Raises:
        UsageError: see ``parse_bytes``.
    """
    known = parse_bytes(os.environ.get(_VARIABLE) or None, _VARIABLE)
    if known is None and adapter.kind == "discrete":
        own = video_memory(adapter.vendor, adapter.product)
        known = None if own is None else int(own * _SHARE)
    elif known is None:
        known = int(psutil.virtual_memory().available * _SHARE)
    return min((n for n in (known, parse_bytes(most)) if n is not None), default=None)
