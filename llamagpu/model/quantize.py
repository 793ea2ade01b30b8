"""Writing a quantized checkpoint in MLX's layout: packed ``weight``, ``scales``, ``biases``, a ``quantization`` block.

Tensors are written one at a time into a folder beside the target, which gets the target's name when it is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from llamagpu.errors import UsageError
from llamagpu.gpu import Affine, widen_bf16
from llamagpu.kernels.quantization import quantize_rows
from llamagpu.model.layout import Layout
from llamagpu.model.model import Prepared
from llamagpu.model.new_folder import check_new, copy_companions, new_folder
from llamagpu.model.sources import HuggingFace
from llamagpu.model.sources.safetensors import SINGLE, Checkpoint
from llamagpu.model.weights import Progress, require_finite

_FILE_TYPE = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_SLICE_VALUES = 4_000_000
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Written:
    """A written copy: bytes of its tensors, and the matrices left unquantized because groups do not divide their
    rows."""

    path: Path
    nbytes: int
    unquantized: tuple[str, ...]


def quantized_share(prepared: Prepared, group_size: int) -> float:
    """The share of the weights that would be quantized: matrices whose rows are multiples of the group size."""
    divided = sum(m.rows * m.columns for m in prepared.layout.matrices.values() if m.columns % group_size == 0)
    return divided / prepared.layout.parameters


def quantize_checkpoint(
    prepared: Prepared, out: Path, bits: int, group_size: int, progress: Progress | None = None
) -> Written:
    """Quantize a float checkpoint to ``out``, a directory that must not exist yet.

    Scales and biases have the dtype of the weights, as in MLX.

    Raises:
        UsageError: ``out`` exists, bits or group size are not supported, or the model is quantized already.
        LlamaGPUError: writing failed, for example because the disk is full; partial files are removed.
    """
    source = prepared.source
    if not isinstance(source, HuggingFace):
        raise UsageError(f"{prepared.name} is not a model directory.", "Only directories can be quantized.")
    _check(prepared, out, bits, group_size)
    with new_folder(out) as folder:
        written = _write(source, prepared.layout, folder, bits, group_size, progress)
    return Written(out, written[0], written[1])


def _check(prepared: Prepared, out: Path, bits: int, group_size: int) -> None:
    if bits not in (4, 8):
        raise UsageError(f"bits is {bits}.", "It must be 4 or 8.")
    if group_size not in GROUP_SIZES:
        raise UsageError(f"group_size is {group_size}.", "It must be 32, 64 or 128, as in MLX.")
    if prepared.config.quantization is not None:
        raise UsageError(
            "The model is quantized already.", "Quantizing twice adds up errors.", "Use the float version."
        )
    check_new(out, "model")


def _write(
    source: HuggingFace, layout: Layout, folder: Path, bits: int, group: int, progress: Progress | None
) -> tuple[int, tuple[str, ...]]:
    checkpoint = source.checkpoint
    matrices = {source.own_name(p.name): m.columns for m in layout.matrices.values() for p in m.pieces}
    vectors = [source.own_name(p.name) for v in layout.vectors.values() for p in v.pieces]
    kept = tuple(n for n, columns in matrices.items() if columns % group)
    formats = {
        name: None if name in kept or name in vectors else Affine(bits, group, checkpoint.dtype(name))
        for name in (*matrices, *vectors)
    }
    header, size = _header(checkpoint, formats)
    with (folder / SINGLE).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, affine in formats.items():
            _write_tensor(file, checkpoint, name, affine)
            if progress is not None:
                progress(file.tell(), size + 8 + len(header))
        file.flush()
        os.fsync(file.fileno())
    block: dict[str, Any] = {"group_size": group, "bits": bits, "mode": "affine"}
    block |= {n.removesuffix(".weight"): False for n in kept}
    config = source.config() | {"quantization": block, "quantization_config": block}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    copy_companions(source.directory, folder)
    return size, kept


def _header(checkpoint: Checkpoint, formats: dict[str, Affine | None]) -> tuple[bytes, int]:
    """The header of the new file, and the bytes of its tensors. A format of None keeps a tensor as it is."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    at = 0

    def entry(name: str, dtype: str, shape: tuple[int, ...]) -> None:
        nonlocal at
        size = int(np.prod(shape)) * (4 if dtype in ("F32", "U32") else 2)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size

    for name, affine in formats.items():
        shape, dtype = checkpoint.entries[name].shape, _FILE_TYPE[checkpoint.dtype(name)]
        if affine is None:
            entry(name, dtype, shape)
            continue
        rows, columns = shape
        entry(name, "U32", (rows, columns * affine.bits // 32))
        for suffix in ("scales", "biases"):
            entry(name.removesuffix("weight") + suffix, dtype, (rows, columns // affine.group))
    text = json.dumps(header).encode()
    return text + b" " * (-len(text) % 8), at


def _write_tensor(file: BinaryIO, checkpoint: Checkpoint, name: str, affine: Affine | None) -> None:
    values = checkpoint.read(name)
    if affine is None:
        file.write(np.ascontiguousarray(values).data)
        return
    others: list[npt.NDArray[Any]] = []
    for part in _slices(values):
        wide = widen_bf16(part) if affine.scales == "bf16" else part.astype(np.float32)
        packed, scales, biases = quantize_rows(require_finite(wide, name), affine)
        file.write(np.ascontiguousarray(packed).data)
        others += [scales, biases]
    for which in (0, 1):
        file.write(np.ascontiguousarray(np.concatenate(others[which::2])).data)


def _slices(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    step = max(1, _SLICE_VALUES // values.shape[1])
    for first in range(0, len(values), step):
        yield values[first : first + step]
