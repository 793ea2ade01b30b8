"""Safetensors files, single or sharded: headers read and checked, tensors as memory-mapped views.

The headers are parsed here because the ``safetensors`` package accepts duplicate keys and has no numpy type for
bfloat16. The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from llamagpu.errors import ModelNotFoundError, UnsupportedModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_ITEM = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "U32": 4}
_ITEM |= {"U16": 2, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1}
_TYPES = {
    "F32": ("f32", np.float32),
    "F16": ("f16", np.float16),
    "BF16": ("bf16", np.uint16),
    "U32": ("u32", np.uint32),
}
MOST_HEADER = 100_000_000


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: path, dtype as the file names it, shape, and byte range."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Checkpoint:
    """The tensors of a model directory, by name."""

    def __init__(self, entries: dict[str, Entry]):
        self.entries = entries
        self._maps: dict[Path, npt.NDArray[np.uint8]] = {}

    def dtype(self, name: str) -> str:
        """A tensor's dtype by our name: f32, f16, bf16, or u32 (packed values). Others keep the file's name in lower
        case."""
        dtype = self.entries[name].dtype
        return _TYPES[dtype][0] if dtype in _TYPES else dtype.lower()

    def read(self, name: str) -> npt.NDArray[Any]:
        """A view of the file: float32, float16, uint32, or uint16 with bfloat16 bits. Nothing is copied."""
        entry = self.entries[name]
        if entry.path not in self._maps:
            self._maps[entry.path] = np.memmap(entry.path, np.uint8, mode="r")
        raw = self._maps[entry.path][entry.begin : entry.end]
        return raw.view(_TYPES[entry.dtype][1]).reshape(entry.shape)


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ModelNotFoundError: the file is missing.
        UnsupportedModelError: it does not hold a JSON object.
    """
    value = _read_json(path)
    if not isinstance(value, dict):
        raise UnsupportedModelError(f"{path} does not hold a JSON object.", "", "Download the file again.")
    return value


def load_objects(path: Path) -> list[dict[str, Any]]:
    """A JSON list of objects from a file; raises as ``load_json``."""
    value = _read_json(path)
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise UnsupportedModelError(f"{path} does not hold a list of JSON objects.", "", "Download the file again.")
    return value


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFoundError(
            f"There is no {path.name} in {str(path.parent)!r}.",
            "A model directory holds config.json, tokenizer.json and *.safetensors.",
            "Check the path, or download the model again.",
        ) from None
    except (OSError, ValueError, RecursionError) as e:
        raise UnsupportedModelError(f"{path} cannot be read as JSON.", str(e), "Download the file again.") from None


def open_checkpoint(directory: Path) -> Checkpoint:
    """Read every header of a model directory.

    Raises:
        ModelNotFoundError: no weights, or a shard is missing.
        UnsupportedModelError: a file is broken; it is named, with the reason.
    """
    if (directory / INDEX).exists():
        return Checkpoint(_sharded(directory))
    single = directory / SINGLE
    if not single.exists():
        others = sorted(directory.glob("*.safetensors"))
        if len(others) != 1:
            raise ModelNotFoundError(
                f"There is no {SINGLE} in {directory}.",
                "Weights are read from safetensors files (one, or shards with an index).",
                "Check the path, or convert the checkpoint to safetensors.",
            )
        single = others[0]
    return Checkpoint(read_header(single))


def read_index(directory: Path) -> dict[str, str]:
    """The shard of every tensor, from the index of a sharded checkpoint.

    Raises:
        UnsupportedModelError: the index is broken, or names files outside the directory.
    """
    weight_map = load_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _broken(directory / INDEX, "it has no weight_map")
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in (".", "..") or "\\" in shard:
            raise _broken(directory / INDEX, f"it names {shard!r}, which is not a file of this directory")
    return weight_map


def _sharded(directory: Path) -> dict[str, Entry]:
    weight_map = read_index(directory)
    shards: dict[str, dict[str, Entry]] = {}
    for name, shard in weight_map.items():
        if shard not in shards:
            if not (directory / shard).exists():
                raise ModelNotFoundError(
                    f"The shard {shard} is missing from {directory}.",
                    f"{INDEX} says that it holds {name}.",
                    "Download the model again.",
                )
            shards[shard] = read_header(directory / shard)
        if name not in shards[shard]:
            raise _broken(directory / shard, f"it lacks {name}, which the index places there")
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def _broken(path: Path, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{path.name} is broken: {why}.", f"In {path.parent}.", "Download the file again.")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"the key {key!r} occurs twice in its header")
        out[key] = value
    return out


def read_header(path: Path) -> dict[str, Entry]:
    """The entries of one safetensors file; every offset checked against the file."""
    if not path.is_file():
        raise _broken(path, "it is not a regular file")
    with path.open("rb") as file:
        return parse_header(path, file, path.stat().st_size)


def parse_header(path: Path, file: BinaryIO, size: int) -> dict[str, Entry]:
    """The entries of a safetensors file of ``size`` bytes, from its beginning; every offset checked against the size.

    Raises:
        UnsupportedModelError: the header is broken. ``path`` is its name in the message.
    """
    start = file.read(8)
    if start.startswith(b"version "):
        raise _broken(path, "it is a Git LFS pointer, not the weights (run: git lfs pull)")
    if len(start) < 8:
        raise _broken(path, f"it has only {size} bytes")
    (length,) = struct.unpack("<Q", start)
    if length > min(MOST_HEADER, size - 8):
        raise _broken(path, f"its header claims {length:,} bytes of a file of {size:,}; it may be truncated")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_once)
        if not isinstance(header, dict):
            raise ValueError("it is not an object")
    except (ValueError, RecursionError) as e:
        raise _broken(path, f"its header cannot be read ({e})") from None
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, value, 8 + length, size) for name, value in header.items()}
    ordered = sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end))
    for (a, first), (b, second) in itertools.pairwise(ordered):
        if second.begin < first.end:
            raise _broken(path, f"the tensors {a} and {b} overlap")
    end = max((e.end for e in entries.values()), default=8 + length)
    if end != size:
        raise _broken(path, f"its tensors end at byte {end:,}, the file at {size:,}")
    return entries


def _entry(path: Path, name: str, value: Any, base: int, size: int) -> Entry:
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        numbers = [*shape, begin, end]
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
            raise ValueError
    except (TypeError, KeyError, ValueError):
        raise _broken(path, f"the entry of {name} is not valid") from None
    if dtype not in _ITEM:
        raise _broken(path, f"{name} has the unknown dtype {dtype!r}")
    if end - begin != math.prod(shape) * _ITEM[dtype]:
        raise _broken(path, f"{name} has {end - begin:,} bytes, its shape {shape} in {dtype} needs another number")
    if base + end > size:
        raise _broken(path, f"{name} ends at byte {base + end:,} of a file of {size:,}; it is truncated")
    return Entry(path, dtype, tuple(shape), base + begin, base + end)
