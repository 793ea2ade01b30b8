"""Tunings that were measured on an adapter, kept in the user's cache directory."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

from llamagpu import __version__
from llamagpu.gpu import native
from llamagpu.gpu.adapter import Adapter
from llamagpu.gpu.tuning import SHADER_F16, SUBGROUP, Lanes, Tuning

T = TypeVar("T", Lanes, Tuning)
BUILT_IN = "built-in"  # of LLAMAGPU_TUNING: what was measured is left alone


def profile_path() -> Path:
    """The file of measured tunings: ``LLAMAGPU_CACHE``, or the user's cache directory."""
    folder = os.environ.get("LLAMAGPU_CACHE") or platformdirs.user_cache_dir("llamagpu", appauthor=False)
    return Path(folder) / "tuning.json"


def _key(adapter: Adapter) -> str:
    """What a measured tuning holds for: this adapter, its driver, and these versions."""
    return " | ".join((str(adapter), adapter.driver, native.version(), f"llamagpu {__version__}"))


def _read() -> dict[str, Any]:
    try:
        found = json.loads(profile_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # nothing was measured, or somebody else wrote there: measuring again mends it
    return found if isinstance(found, dict) else {}


def stored_tuning(adapter: Adapter, features: frozenset[str], subgroup_size: int) -> Tuning | None:
    """The tuning that was measured on this adapter, or None: where there is none, it does not fit the features, or
    ``LLAMAGPU_TUNING=built-in`` is set."""
    if os.environ.get("LLAMAGPU_TUNING") == BUILT_IN:
        return None
    tuning = _parse(_read().get(_key(adapter)))
    missing = tuning is not None and (
        (tuning.f16 == "native" and SHADER_F16 not in features)
        or (tuning.reduce == "subgroup" and SUBGROUP not in features)
        or (tuning.share == "subgroup" and subgroup_size != 8)
    )
    return None if missing else tuning


def _parse(values: Any) -> Tuning | None:
    """A tuning from what JSON made of it; None where it is another version's, or damaged."""
    if not isinstance(values, dict):
        return None
    try:
        cuts = tuple((str(key), _checked(Lanes(**cut))) for key, cut in values.pop("lanes"))
        return _checked(Tuning(**values, lanes=cuts))
    except (TypeError, ValueError, KeyError):
        return None


def _checked(values: T) -> T:
    for f in fields(values):
        if type(getattr(values, f.name)) is not type(f.default):
            raise ValueError(f.name)
    return values


def store_tuning(adapter: Adapter, tuning: Tuning) -> Path:
    """Keep a measured tuning; the file that it is in now.

    Raises:
        OSError: it cannot be written.
    """
    path = profile_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _read()
    earlier = _parse(known.get(_key(adapter)))
    if earlier is not None:
        tuning = replace(tuning, lanes=_joined(earlier.lanes, tuning.lanes))
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(known | {_key(adapter): asdict(tuning)}, indent=2), encoding="utf-8")
    partial.replace(path)  # another process sees the old file or the new one
    return path


def _joined(
    earlier: tuple[tuple[str, Lanes], ...], later: tuple[tuple[str, Lanes], ...]
) -> tuple[tuple[str, Lanes], ...]:
    """The cuts of several models: the later ones, and of the earlier those whose order of additions they share."""
    orders = {key.rsplit(" ", 1)[0]: cut.order for key, cut in later}
    kept = [(key, cut) for key, cut in earlier if orders.get(key.rsplit(" ", 1)[0], cut.order) == cut.order]
    return tuple((dict(kept) | dict(later)).items())
