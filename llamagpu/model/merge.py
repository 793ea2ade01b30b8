"""Writing a copy of a model with a LoRA adapter merged into its weights: W + scale · B A, in the dtype of W."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.errors import UnsupportedModelError, UsageError
from llamagpu.gpu import narrow_bf16
from llamagpu.model.lora import read_lora
from llamagpu.model.model import Prepared
from llamagpu.model.new_folder import check_new, copy_companions, new_folder
from llamagpu.model.sources import HuggingFace
from llamagpu.model.sources.lora import widened
from llamagpu.model.sources.safetensors import SINGLE, Checkpoint
from llamagpu.model.weights import Progress

_SLICE_VALUES = 2_000_000


@dataclass(frozen=True)
class Merged:
    """A written copy: the bytes of its tensors, and the number of tensors that were changed."""

    path: Path
    nbytes: int
    changed: int


@dataclass(frozen=True)
class _Change:
    """A change of a checkpoint's tensor; the rows of B are in the checkpoint's order."""

    a: npt.NDArray[np.float32]
    b: npt.NDArray[np.float32]
    scale: float


def merge_checkpoint(
    prepared: Prepared, adapter: str | Path, out: Path, scale: float = 1.0, progress: Progress | None = None
) -> Merged:
    """Write a model with an adapter merged into it to ``out``, a directory that must not exist yet.

    A sum is computed in float64 and rounded once, to the dtype of the model's tensor. Host memory holds slices.

    Args:
        scale: a factor of the adapter's change.

    Raises:
        UsageError: ``out`` exists, or the model is quantized or no directory.
        UnsupportedModelError: the adapter does not fit the model (``read_lora``), or a sum exceeds float16.
        LlamaGPUError: writing failed, for example because the disk is full; partial files are removed.
    """
    source = prepared.source
    if not isinstance(source, HuggingFace):
        what, why = f"{prepared.name} is not a model directory.", "An adapter is merged into safetensors only."
        raise UsageError(what, why, "Load it beside the model with --adapter.")
    if prepared.config.quantization is not None:
        what, why = f"{prepared.name} is quantized.", "Its packed weights cannot hold a change."
        raise UsageError(what, why, "Merge into the float version, then quantize, or load the adapter with --adapter.")
    check_new(out, "model")
    changes = _changes(prepared, source, adapter, scale)
    with new_folder(out) as folder:
        size = _write(source.checkpoint, _names(prepared, source), changes, folder / SINGLE, progress)
        (folder / "config.json").write_text(json.dumps(source.config(), indent=2) + "\n", encoding="utf-8")
        copy_companions(source.directory, folder)
    return Merged(out, size, len(changes))


def _changes(prepared: Prepared, source: HuggingFace, adapter: str | Path, scale: float) -> dict[str, _Change]:
    """The changes by the names of tensors in the checkpoint."""
    lora, out = read_lora(adapter, prepared.layout), {}
    for key, pairs in lora.pairs.items():
        for piece, pair in zip(prepared.layout.matrices[key].pieces, pairs, strict=True):
            if pair is None:
                continue
            b = widened(pair.b)
            if lora.file.paired:
                own = np.empty_like(b)
                own[source.own_rows(piece.name, np.arange(len(b)))] = b
                b = own
            out[source.own_name(piece.name)] = _Change(widened(pair.a), b, pair.scale * scale)
    return out


def _names(prepared: Prepared, source: HuggingFace) -> list[str]:
    """The tensors of the model by their names in the checkpoint."""
    layout = prepared.layout
    pieces = [p for m in layout.matrices.values() for p in m.pieces]
    pieces += [p for v in layout.vectors.values() for p in v.pieces]
    return list(dict.fromkeys(source.own_name(p.name) for p in pieces))


def _write(
    checkpoint: Checkpoint, names: list[str], changes: Mapping[str, _Change], path: Path, progress: Progress | None
) -> int:
    """Write the tensors to a safetensors file; returns their bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        entry = checkpoint.entries[name]
        size = entry.end - entry.begin
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            values = checkpoint.read(name)
            step = max(1, _SLICE_VALUES // values.shape[-1])
            for first in range(0, len(values), step):
                part = values[first : first + step]
                if name in changes:
                    part = _sum(part, changes[name], slice(first, first + step), name)
                file.write(np.ascontiguousarray(part).data)
            if progress is not None:
                progress(file.tell() - 8 - len(text), end)
        file.flush()
        os.fsync(file.fileno())
    return end


def _sum(values: npt.NDArray[Any], change: _Change, rows: slice, name: str) -> npt.NDArray[Any]:
    """Rows of W + scale · B A in the dtype of W."""
    product = change.b[rows].astype(np.float64) @ change.a.astype(np.float64)
    wide = (widened(values).astype(np.float64) + change.scale * product).astype(np.float32)
    if values.dtype == np.uint16:
        return narrow_bf16(wide)
    if values.dtype == np.float16 and float(np.abs(wide).max(initial=0)) > 65504:
        why = "The sum is beyond float16's range."
        raise UnsupportedModelError(f"{name} cannot hold the merged weights.", why, "Merge into a float32 version.")
    return wide.astype(values.dtype)
