"""Measured tunings, kept in the user's cache directory."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

from llamagpu.gpu import native
from llamagpu.gpu.adapter import Adapter
from llamagpu.gpu.tuning import SHADER_F16, SHADER_INT64, SUBGROUP, Lanes, TunedLanes, Tuning
from llamagpu.version import __version__

T = TypeVar("T", Lanes, TunedLanes, Tuning)
BUILT_IN = "built-in"  # value of LLAMAGPU_TUNING that ignores measured tunings


def cache_folder() -> Path:
    """The folder for files that outlive a run: ``LLAMAGPU_CACHE``, or the user's cache directory."""
    folder = os.environ.get("LLAMAGPU_CACHE") or platformdirs.user_cache_dir("llamagpu", appauthor=False)
    return Path(folder)


def tuning_path() -> Path:
    """The file of measured tunings."""
    return cache_folder() / "tuning.json"


def adapter_key(adapter: Adapter) -> str:
    """One adapter, its driver, and our versions: what a tuning is valid for, and the last bits of results."""
    return " | ".join((str(adapter), adapter.driver, native.version(), f"llamagpu {__version__}"))


def _read() -> dict[str, Any]:
    try:
        found = json.loads(tuning_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # nothing was measured, or the file is damaged; measuring again repairs it
    return found if isinstance(found, dict) else {}


def stored_tuning(adapter: Adapter, features: frozenset[str], subgroup_size: int) -> Tuning | None:
    """The tuning that was measured on this adapter. None if there is none, if it does not fit the features, or if
    ``LLAMAGPU_TUNING=built-in`` is set."""
    if os.environ.get("LLAMAGPU_TUNING") == BUILT_IN:
        return None
    tuning = _parse(_read().get(adapter_key(adapter)))
    missing = tuning is not None and (
        (tuning.f16 == "native" and SHADER_F16 not in features)
        or (tuning.reduce == "subgroup" and SUBGROUP not in features)
        or (tuning.words == "u64" and SHADER_INT64 not in features)
        or (tuning.share == "subgroup" and subgroup_size != 8)
    )
    return None if missing else tuning


def _parse(values: Any) -> Tuning | None:
    """A tuning from its JSON values; None if they are damaged or from another version."""
    if not isinstance(values, dict):
        return None
    try:
        lanes = tuple(_checked(TunedLanes(**t | {"cut": _checked(Lanes(**t["cut"]))})) for t in values["lanes"])
        return _checked(Tuning(**values | {"lanes": lanes}))
    except (TypeError, ValueError, KeyError):
        return None


def _checked(values: T) -> T:
    """The values; raises ValueError if a field's value does not have its declared type."""
    for f in fields(values):
        kind = {"str": str, "int": int, "bool": bool}.get(str(f.type))
        if kind is not None and type(getattr(values, f.name)) is not kind:
            raise ValueError(f.name)
    return values


def store_tuning(adapter: Adapter, tuning: Tuning) -> Path:
    """Keep a measured tuning; returns its file.

    Raises:
        OSError: it cannot be written.
    """
    path = tuning_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _read()
    earlier = _parse(known.get(adapter_key(adapter)))
    if earlier is not None:
        tuning = replace(tuning, lanes=_joined(earlier.lanes, tuning.lanes))
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(known | {adapter_key(adapter): asdict(tuning)}, indent=2), encoding="utf-8")
    partial.replace(path)  # other processes see the old file or the new one
    return path


def _joined(earlier: tuple[TunedLanes, ...], later: tuple[TunedLanes, ...]) -> tuple[TunedLanes, ...]:
    """The lanes of several models. Earlier entries are kept only if the order of additions matches."""
    orders = {(t.format, t.columns): t.cut.order for t in later}
    new = {(t.format, t.columns, t.rows) for t in later}
    kept = (t for t in earlier if orders.get((t.format, t.columns), t.cut.order) == t.cut.order)
    return (*(t for t in kept if (t.format, t.columns, t.rows) not in new), *later)
