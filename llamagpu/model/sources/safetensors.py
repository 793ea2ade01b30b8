"""Safetensors files, single or sharded: headers read and checked, tensors as memory-mapped views.

The headers are parsed here because the ``safetensors`` package accepts duplicate keys and has no numpy type for
bfloat16. The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import itertools
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from llamagpu.errors import LlamaGPUError, ModelNotFoundError, shown
from llamagpu.model.sources.files import (
    MOST_JSON,
    PICKLED,
    broken,
    load_json,
    map_file,
    open_file,
    parse_json,
    pickled,
    present,
)

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
MOST_HEADER = MOST_JSON
_MOST_AXES = 8


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
            self._maps[entry.path] = map_file(entry.path)
        raw = self._maps[entry.path][entry.begin : entry.end]
        return raw.view(_TYPES[entry.dtype][1]).reshape(entry.shape)


def open_checkpoint(directory: Path) -> Checkpoint:
    """Read every header of a model directory.

    Raises:
        ModelNotFoundError: no weights, or a shard is missing.
        UnsupportedModelError: a file is broken; it is named, with the reason.
    """
    if present(directory / INDEX):
        return Checkpoint(_sharded(directory))
    single = directory / SINGLE
    if not present(single):
        others = sorted(directory.glob("*.safetensors"))
        if len(others) != 1:
            raise _no_weights(directory)
        single = others[0]
    return Checkpoint(read_header(single))


def _no_weights(directory: Path) -> LlamaGPUError:
    """The error for a directory without safetensors."""
    pickles = sorted(path for path in directory.iterdir() if path.suffix.lower() in PICKLED)
    if pickles:
        return pickled(pickles[0])
    return ModelNotFoundError(
        f"There is no {SINGLE} in {directory}.",
        "Weights are read from safetensors files (one, or shards with an index).",
        "Check the path, or convert the checkpoint to safetensors.",
    )


def read_index(directory: Path) -> dict[str, str]:
    """The shard of every tensor, from the index of a sharded checkpoint.

    Raises:
        UnsupportedModelError: the index is broken, or names files outside the directory.
    """
    weight_map = load_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise broken(directory / INDEX, "it has no weight_map")
    for shard in weight_map.values():
        if not is_name(shard):
            raise broken(directory / INDEX, f"it names {shown(shard)}, which is not a file of this directory")
    return weight_map


def is_name(name: Any) -> bool:
    """Whether a value is the plain name of a file or folder, which cannot lead out of a directory."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _sharded(directory: Path) -> dict[str, Entry]:
    weight_map = read_index(directory)
    shards: dict[str, dict[str, Entry]] = {}
    for name, shard in weight_map.items():
        if shard not in shards:
            if not present(directory / shard):
                raise ModelNotFoundError(
                    f"The shard {shard} is missing from {directory}.",
                    f"{INDEX} says that it holds {shown(name)}.",
                    "Download the model again.",
                )
            shards[shard] = read_header(directory / shard)
        if name not in shards[shard]:
            raise broken(directory / shard, f"it lacks {shown(name)}, which the index places there")
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"the key {shown(key)} occurs twice in its header")
        out[key] = value
    return out


def read_header(path: Path) -> dict[str, Entry]:
    """The entries of one safetensors file; every offset checked against the file."""
    with open_file(path) as file:
        return parse_header(path, file, os.fstat(file.fileno()).st_size)


def parse_header(path: Path, file: BinaryIO, size: int) -> dict[str, Entry]:
    """The entries of a safetensors file of ``size`` bytes, from its beginning; every offset checked against the size.

    Raises:
        UnsupportedModelError: the header is broken. ``path`` is its name in the message.
    """
    header, length = _read_json(path, file, size)
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, value, 8 + length, size) for name, value in header.items()}
    ordered = sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end))
    for (a, first), (b, second) in itertools.pairwise(ordered):
        if second.begin < first.end:
            raise broken(path, f"the tensors {shown(a)} and {shown(b)} overlap")
    end = max((e.end for e in entries.values()), default=8 + length)
    if end != size:
        raise broken(path, f"its tensors end at byte {end:,}, the file at {size:,}")
    return entries


def read_metadata(path: Path) -> dict[str, str]:
    """The texts beside the tensors of a safetensors file; raises as ``read_header``."""
    with open_file(path) as file:
        found = _read_json(path, file, os.fstat(file.fileno()).st_size)[0].get("__metadata__", {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise broken(path, "its metadata are not texts")
    return found


def _read_json(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The JSON of a safetensors file of ``size`` bytes, and its length."""
    start = file.read(8)
    if start.startswith(b"version "):
        raise broken(path, "it is a Git LFS pointer, not the weights (run: git lfs pull)")
    if len(start) < 8:
        raise broken(path, f"it has only {size} bytes")
    (length,) = struct.unpack("<Q", start)
    if length > min(MOST_HEADER, size - 8):
        raise broken(path, f"its header claims {length:,} bytes of a file of {size:,}; it may be truncated")
    try:
        header = parse_json(file.read(length), _once)
        if not isinstance(header, dict):
            raise ValueError("it is not an object")
    except ValueError as e:
        raise broken(path, f"its header cannot be read ({e})") from None
    return header, length


def _entry(path: Path, name: str, value: Any, base: int, size: int) -> Entry:
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise broken(path, f"the entry of {shown(name)} is not valid") from None
    if not isinstance(dtype, str) or dtype not in _ITEM:
        raise broken(path, f"{shown(name)} has the unknown dtype {shown(dtype)}")
    if not isinstance(shape, list) or len(shape) > _MOST_AXES:
        raise broken(path, f"{shown(name)} has the shape {shown(shape)}, not a list of up to {_MOST_AXES} numbers")
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**63 for n in (*shape, begin, end)):
        raise broken(path, f"the entry of {shown(name)} is not valid")
    if end - begin != math.prod(shape) * _ITEM[dtype]:
        raise broken(
            path, f"{shown(name)} has {end - begin:,} bytes, its shape {shape} in {dtype} needs another number"
        )
    if base + end > size:
        raise broken(path, f"{shown(name)} ends at byte {base + end:,} of a file of {size:,}; it is truncated")
    return Entry(path, dtype, tuple(shape), base + begin, base + end)
