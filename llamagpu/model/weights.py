"""A layout's tensors on the GPU: fused, permuted, quantised where that was asked, with no second copy on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.errors import UnsupportedModelError
from llamagpu.gpu import UPLOAD_ROWS, Affine, Device, Tensor, narrow_bf16, pack_rows, widen_bf16
from llamagpu.kernels import dequantize, quantize
from llamagpu.kernels.affine import Quantised, upload
from llamagpu.model.config import Config
from llamagpu.model.layout import Layout, Matrix, Rows, Source

_SLICE_VALUES = 4_000_000  # weights that are on the host at a time
Progress = Callable[[int, int], None]
Array = npt.NDArray[Any]


@dataclass
class Layer:
    """One layer's tensors. qkv [q + 2 kv, hidden]; o [hidden, q]; gate_up [2 · intermediate, hidden], interleaved;
    down [hidden, intermediate]; norms and biases are float32 vectors."""

    qkv: Tensor
    o: Tensor
    gate_up: Tensor
    down: Tensor
    attn_norm: Tensor
    mlp_norm: Tensor
    qkv_bias: Tensor | None = None
    o_bias: Tensor | None = None
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None


@dataclass
class Weights:
    """A model's tensors. ``head`` is ``embed`` where they are tied."""

    embed: Tensor
    head: Tensor
    norm: Tensor
    layers: list[Layer] = field(default_factory=list)


def load_weights(layout: Layout, device: Device, progress: Progress | None = None) -> Weights:
    """Upload everything, slice by slice. ``progress(bytes done, bytes in all)`` is called along the way."""
    total, done = layout.nbytes, 0

    def load(matrix: Matrix) -> Tensor:
        nonlocal done
        format = matrix.format
        affine = isinstance(format, Affine)
        tensor = empty_matrix(device, matrix)
        step = max(1, _SLICE_VALUES // matrix.columns // UPLOAD_ROWS) * UPLOAD_ROWS
        for first in range(0, matrix.rows, step):
            count = min(step, matrix.rows - first)
            if affine:
                upload(tensor, first, quantised_rows(layout, matrix, first, count))
            else:
                rows = pack_rows(float_rows(layout, matrix, first, count), str(format))
                device.upload_rows(tensor.parts, first, rows, tensor.woven)
            done += count * matrix.row_bytes
            if progress is not None:
                progress(done, total)
        return tensor

    matrices = {key: load(matrix) for key, matrix in layout.matrices.items()}
    names = list(layout.vectors)
    arrays: list[npt.NDArray[np.generic]] = [_vector_values(layout, layout.vectors[name]) for name in names]
    vectors = dict(zip(names, device.windows(arrays, purpose="weights"), strict=True))
    device.finish()
    return assemble(layout.config, matrices | vectors)


def empty_matrix(device: Device, matrix: Matrix) -> Tensor:
    """Zeroed memory for a matrix, its rows in the order that the device's tuning asks for."""
    woven = device.tuning.order == "woven"
    if isinstance(matrix.format, Affine):
        return device.empty_affine(matrix.rows, matrix.columns, matrix.format, woven=woven)
    return device.empty((matrix.rows, matrix.columns), matrix.format, purpose="weights", woven=woven)


def assemble(config: Config, tensors: dict[str, Tensor]) -> Weights:
    """The tensors of a layout by role (``0.qkv``, ``norm``, …) as weights."""
    layers = []
    for i in range(config.num_hidden_layers):
        prefix = f"{i}."
        layers.append(Layer(**{k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}))
    return Weights(tensors["embed"], tensors.get("head", tensors["embed"]), tensors["norm"], layers)


def _from_sources(matrix: Matrix, first: int, count: int) -> list[tuple[Source, npt.NDArray[np.bool_], Rows]]:
    """For rows first … first + count of a matrix: each source, which of them it gives, and from which of its rows."""
    inverse = np.empty(matrix.rows, np.int64)
    inverse[np.concatenate([s.rows for s in matrix.sources])] = np.arange(matrix.rows)
    wanted = inverse[first : first + count]
    out, begin = [], 0
    for source in matrix.sources:
        mine = (begin <= wanted) & (wanted < begin + len(source.rows))
        out.append((source, mine, wanted[mine] - begin))
        begin += len(source.rows)
    return out


def _wide(layout: Layout, source: Source, rows: Rows) -> npt.NDArray[np.float32]:
    """Rows of a source as float32: exactly, but for quantised ones, which are rounded once."""
    if isinstance(source.stored, Affine):
        return dequantize(_stored_rows(layout, source, rows), source.stored).astype(np.float32)
    values = layout.checkpoint.read(source.name)[rows]
    return widen_bf16(values) if source.stored == "bf16" else values.astype(np.float32)


def require_finite(values: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
    """The values; raises UnsupportedModelError where they cannot be quantised."""
    if not np.isfinite(values).all():
        raise UnsupportedModelError(
            f"{name} holds NaN or infinity.", "It cannot be quantised.", "Check the checkpoint."
        )
    return values


def _stored_rows(layout: Layout, source: Source, rows: Rows) -> Quantised:
    names = (source.name, source.beside("scales"), source.beside("biases"))
    packed, scales, biases = (layout.checkpoint.read(name)[rows] for name in names)
    return packed, scales, biases


def quantised_rows(layout: Layout, matrix: Matrix, first: int, count: int) -> Quantised:
    """Rows of a quantised matrix: as stored, or rounded now."""
    affine = matrix.format
    assert isinstance(affine, Affine)
    slices: list[Array | None] = [None, None, None]
    for source, mine, rows in _from_sources(matrix, first, count):
        if not len(rows):
            continue
        if source.stored == affine:
            stored = _stored_rows(layout, source, rows)
        else:
            stored = quantize(require_finite(_wide(layout, source, rows), source.name), affine)
        for i, part in enumerate(stored):
            if slices[i] is None:
                slices[i] = np.empty((count, part.shape[1]), part.dtype)
            slices[i][mine] = part  # type: ignore[index]
    packed, scales, biases = slices
    assert packed is not None
    assert scales is not None
    assert biases is not None
    return packed, scales, biases


def float_rows(layout: Layout, matrix: Matrix, first: int, count: int) -> Array:
    """Rows of a float matrix in its dtype (bf16 as uint16 bits): unchanged, widened exactly, or rounded to nearest."""
    kind = {"bf16": np.uint16, "f16": np.float16, "f32": np.float32}[str(matrix.format)]
    out = np.empty((count, matrix.columns), kind)
    for source, mine, rows in _from_sources(matrix, first, count):
        if source.stored == matrix.format:
            out[mine] = layout.checkpoint.read(source.name)[rows]
        elif len(rows):
            out[mine] = _convert(_wide(layout, source, rows), str(matrix.format), source.name)
    return out


def _convert(wide: npt.NDArray[np.float32], dtype: str, name: str) -> Array:
    if dtype == "bf16":
        return narrow_bf16(wide)
    if dtype == "f16" and float(np.abs(wide).max()) > 65504:
        raise UnsupportedModelError(
            f"{name} holds values beyond float16's range.",
            f"The largest is {float(np.abs(wide).max()):g}; float16 ends at 65504.",
            "Load it with --dtype bfloat16 or float32.",
        )
    return wide.astype(np.float16 if dtype == "f16" else np.float32)


def _vector_values(layout: Layout, sources: tuple[Source, ...]) -> npt.NDArray[np.float32]:
    out = np.empty(sum(len(s.rows) for s in sources), np.float32)
    for s in sources:
        values = layout.checkpoint.read(s.name)
        out[s.rows] = widen_bf16(values) if s.stored == "bf16" else values
    return out
