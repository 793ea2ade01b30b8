"""Loading a layout's tensors to the GPU: fused, and quantized on request, without a second copy in host memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.errors import UnsupportedModelError
from llamagpu.gpu import UPLOAD_ROWS, Affine, Recorder, Tensor, narrow_bf16, pack_rows, widen_bf16
from llamagpu.kernels.noise import noise
from llamagpu.kernels.quantization import dequantize_rows, quantize_rows, upload, widen_rows
from llamagpu.model.layout import Layout
from llamagpu.model.sources import Quantized, Rows
from llamagpu.model.tensor_layout import Key, Matrix, Piece, TensorLayout, Vector

_SLICE_VALUES = 4_000_000  # weights in host memory at a time
Progress = Callable[[int, int], None]
Array = npt.NDArray[Any]


@dataclass
class Layer:
    """One layer's tensors. qkv [q + 2 kv, hidden]; o [hidden, q]; gate_up [2 · intermediate, hidden], interleaved, or
    up alone if the MLP has no gate; down [hidden, intermediate]; norms and biases are float32 vectors. qk_norm has the
    weights of q's norm, then k's."""

    qkv: Tensor
    o: Tensor
    gate_up: Tensor
    down: Tensor
    attn_norm: Tensor | None = None
    attn_post_norm: Tensor | None = None
    mlp_norm: Tensor | None = None
    mlp_post_norm: Tensor | None = None
    qk_norm: Tensor | None = None
    qkv_bias: Tensor | None = None
    o_bias: Tensor | None = None
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None


@dataclass
class Weights:
    """A model's tensors. ``head`` is ``embed`` if they are tied. ``embed_norm`` normalizes the embedding, if any."""

    embed: Tensor
    head: Tensor
    norm: Tensor
    layers: list[Layer] = field(default_factory=list)
    embed_norm: Tensor | None = None


def load_weights(layout: Layout, device: Recorder[Any], woven: bool, progress: Progress | None = None) -> Weights:
    """A decoder's tensors; see ``load_tensors``."""
    return assemble(layout, load_tensors(layout, device, woven, progress))


def load_tensors(
    layout: TensorLayout, device: Recorder[Any], woven: bool, progress: Progress | None = None
) -> dict[Key, Tensor]:
    """Allocate and upload everything; see ``empty_tensors`` and ``fill_tensors``."""
    tensors = empty_tensors(layout, device, woven)
    fill_tensors(layout, tensors, progress)
    device.synchronize()
    return tensors


def empty_tensors(layout: TensorLayout, device: Recorder[Any], woven: bool) -> dict[Key, Tensor]:
    """Zeroed memory for the matrices of a layout, and its vectors, which are small, with their values.

    Args:
        woven: whether rows are woven, as the model's tuning says.
    """
    matrices = {key: empty_matrix(device, matrix, woven) for key, matrix in layout.matrices.items()}
    arrays: list[npt.NDArray[np.generic]] = [vector_values(layout, v) for v in layout.vectors.values()]
    vectors = dict(zip(layout.vectors, device.windows(arrays, purpose="weights"), strict=True))
    return matrices | vectors


def fill_tensors(layout: TensorLayout, tensors: dict[Key, Tensor], progress: Progress | None = None) -> None:
    """Upload all matrices, slice by slice. ``progress(bytes done, bytes in all)`` is called along the way."""
    total, done = layout.nbytes, 0
    for key, matrix in layout.matrices.items():
        tensor = tensors[key]
        step = max(1, _SLICE_VALUES // matrix.columns // UPLOAD_ROWS) * UPLOAD_ROWS
        for first in range(0, matrix.rows, step):
            count = min(step, matrix.rows - first)
            if isinstance(matrix.format, Affine):
                upload(tensor, first, quantized_slice(layout, matrix, first, count))
            else:
                tensor.write_rows(first, pack_rows(float_slice(layout, matrix, first, count), matrix.format))
            done += count * matrix.row_bytes
            if progress is not None:
                progress(done, total)


def fill_random(layout: TensorLayout, tensors: dict[Key, Tensor]) -> None:
    """Fill all matrices with values from -0.03 to 0.03, made on the GPU."""
    for seed, (key, matrix) in enumerate(layout.matrices.items()):
        _random(tensors[key], matrix, seed)


def _random(tensor: Tensor, matrix: Matrix, seed: int) -> None:
    format = matrix.format
    if isinstance(format, Affine):
        _fill_meta(tensor, matrix, format)
    noise(tensor, seed)


def _fill_meta(tensor: Tensor, matrix: Matrix, format: Affine) -> None:
    """Scales and biases with which all packed values lie from -0.03 to 0.03."""
    scale = np.float32(0.06 / (2**format.bits - 1))
    pair = format.pack_meta(np.full((1, 1), scale), np.full((1, 1), np.float32(-0.03)))
    rows = np.tile(pair, (1, matrix.columns // format.group))
    for first in range(0, matrix.rows, 4096):
        tensor.write_meta(first, np.repeat(rows, min(4096, matrix.rows - first), axis=0))


def empty_matrix(device: Recorder[Any], matrix: Matrix, woven: bool) -> Tensor:
    """Zeroed memory for a matrix."""
    if isinstance(matrix.format, Affine):
        return device.empty_affine(matrix.rows, matrix.columns, matrix.format, woven=woven)
    return device.empty((matrix.rows, matrix.columns), matrix.format, purpose="weights", woven=woven)


def assemble(layout: Layout, tensors: dict[Key, Tensor]) -> Weights:
    """A decoder's tensors by layer and role."""
    layers: list[dict[str, Tensor]] = [{} for _ in layout.config.layers]
    for key, tensor in tensors.items():
        if key.layer is not None:
            layers[key.layer][key.role] = tensor
    embed = tensors[Key("embed")]
    head = tensors.get(Key("head"), embed)
    outer = tensors[Key("norm")], [Layer(**roles) for roles in layers], tensors.get(Key("embed_norm"))
    return Weights(embed, head, *outer)


def _from_pieces(matrix: Matrix, first: int, count: int) -> list[tuple[Piece, npt.NDArray[np.bool_], Rows]]:
    """For rows first … first + count of a matrix: each piece, a mask of its rows there, and their numbers in it."""
    inverse = np.empty(matrix.rows, np.int64)
    inverse[np.concatenate([p.rows for p in matrix.pieces])] = np.arange(matrix.rows)
    wanted = inverse[first : first + count]
    out, begin = [], 0
    for piece in matrix.pieces:
        mine = (begin <= wanted) & (wanted < begin + len(piece.rows))
        out.append((piece, mine, wanted[mine] - begin))
        begin += len(piece.rows)
    return out


def wide_rows(layout: TensorLayout, piece: Piece, rows: Rows) -> npt.NDArray[np.float32]:
    """Rows of a piece as float32: exact, except that quantized ones are rounded once."""
    stored, format = layout.source.rows(piece.name, rows), piece.stored.format
    if isinstance(stored, tuple):
        assert isinstance(format, Affine)
        return dequantize_rows(stored, format).astype(np.float32)
    return widen_bf16(stored) if format == "bf16" else stored.astype(np.float32)


def require_finite(values: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
    """The values; raises UnsupportedModelError if they cannot be quantized."""
    if not np.isfinite(values).all():
        raise UnsupportedModelError(
            f"{name} holds NaN or infinity.", "It cannot be quantized.", "Check the checkpoint."
        )
    return values


def quantized_slice(layout: TensorLayout, matrix: Matrix, first: int, count: int) -> Quantized:
    """Rows of a quantized matrix: as stored, in a wider format with the same values, or quantized now."""
    affine = matrix.format
    assert isinstance(affine, Affine)
    all_affine = all(isinstance(p.stored.format, Affine) for p in matrix.pieces)  # then the format holds all exactly
    slices: list[Array | None] = [None, None, None]
    for piece, mine, rows in _from_pieces(matrix, first, count):
        if not len(rows):
            continue
        if piece.stored.format == affine:
            stored = layout.source.rows(piece.name, rows)
        elif isinstance(piece.stored.format, Affine) and all_affine:
            quantized = layout.source.rows(piece.name, rows)
            assert isinstance(quantized, tuple)
            stored = widen_rows(quantized, piece.stored.format, affine)
        else:
            stored = quantize_rows(require_finite(wide_rows(layout, piece, rows), piece.name), affine)
        for i, part in enumerate(stored):
            if slices[i] is None:
                slices[i] = np.empty((count, part.shape[1]), part.dtype)
            slices[i][mine] = part  # type: ignore[index]
    packed, scales, biases = slices
    assert packed is not None
    assert scales is not None
    assert biases is not None
    return packed, scales, biases


def float_slice(layout: TensorLayout, matrix: Matrix, first: int, count: int) -> Array:
    """Rows of a float matrix in its dtype (bf16 as uint16 bits): unchanged, widened exactly, or rounded to nearest."""
    kind = {"bf16": np.uint16, "f16": np.float16, "f32": np.float32}[str(matrix.format)]
    out = np.empty((count, matrix.columns), kind)
    for piece, mine, rows in _from_pieces(matrix, first, count):
        if piece.stored.format == matrix.format:
            out[mine] = layout.source.rows(piece.name, rows)
        elif len(rows):
            out[mine] = _convert(wide_rows(layout, piece, rows), str(matrix.format), piece.name)
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


def vector_values(layout: TensorLayout, vector: Vector) -> npt.NDArray[np.float32]:
    """A vector of a layout, on the host."""
    out = np.zeros(vector.size, np.float32)
    for p in vector.pieces:
        out[p.rows] = wide_rows(layout, p, np.arange(len(p.rows)))
    return out + np.float32(vector.offset) if vector.offset else out
