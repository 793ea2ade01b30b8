"""A checkpoint's tensors on the GPU: fused, permuted, in their stored dtype, with no second copy on the host."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llamagpu.errors import UnsupportedModelError
from llamagpu.gpu import Device, Tensor, pack_rows, row_items, widen_bf16
from llamagpu.model.architectures import ARCHITECTURES
from llamagpu.model.checkpoint import Checkpoint
from llamagpu.model.config import Config

DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_ITEM = {"f32": 4, "f16": 2, "bf16": 2}
_SLICE_BYTES = 16_000_000
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Source:
    """One checkpoint tensor of a fused one: its rows go to ``rows`` of the result, in this order."""

    name: str
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Matrix:
    """A matrix [rows, columns] as it will lie on the GPU, and the checkpoint tensors it is made from."""

    sources: tuple[Source, ...]
    columns: int
    dtype: str

    @property
    def rows(self) -> int:
        return sum(len(s.rows) for s in self.sources)

    @property
    def nbytes(self) -> int:
        return self.rows * row_items(self.columns, self.dtype) * _ITEM[self.dtype]


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


class Layout:
    """Which tensors a checkpoint must have for a config, and where their rows go; checked before loading.

    Args:
        dtype: ``auto`` (as stored), ``float32``, ``float16`` or ``bfloat16``.

    Raises:
        UnsupportedModelError: a tensor is missing, has another shape or dtype, or is not understood.
    """

    def __init__(self, config: Config, checkpoint: Checkpoint, dtype: str = "auto"):
        self.config, self.checkpoint, self.dtype = config, checkpoint, dtype
        self._names = ARCHITECTURES[config.model_type].tensors
        self._prefix = self._find_prefix()
        self._seen: set[str] = set()
        c = config
        h, turned = c.hidden_size, _adjacent_pairs
        self.vectors: dict[str, tuple[Source, ...]] = {}
        self.matrices: dict[str, Matrix] = {"embed": self._matrix("embed", h, [("embed", np.arange(c.vocab_size))])}
        if not c.tie_word_embeddings:
            self.matrices["head"] = self._matrix("head", h, [("head", np.arange(c.vocab_size))])
        self._vector("norm", h, [("norm", np.arange(h))])
        q, kv, mlp = c.q_size, c.kv_size, c.intermediate_size
        for i in range(c.num_hidden_layers):
            for role in ("attn_norm", "mlp_norm"):
                self._vector(f"{i}.{role}", h, [(role, np.arange(h))], i)
            fused = {
                "qkv": (
                    h,
                    c.attention_bias,
                    [
                        ("q", turned(c.num_attention_heads, c.head_dim)),
                        ("k", turned(c.num_key_value_heads, c.head_dim) + q),
                        ("v", np.arange(kv) + q + kv),
                    ],
                ),
                "o": (q, c.attention_bias, [("o", np.arange(h))]),
                "gate_up": (h, c.mlp_bias, [("gate", 2 * np.arange(mlp)), ("up", 2 * np.arange(mlp) + 1)]),
                "down": (mlp, c.mlp_bias, [("down", np.arange(h))]),
            }
            for role, (columns, bias, sources) in fused.items():
                self.matrices[f"{i}.{role}"] = self._matrix(role, columns, sources, i)
                if bias:
                    self._vector(f"{i}.{role}_bias", columns, sources, i, "bias")
        self._refuse_unknown()

    @property
    def nbytes(self) -> int:
        """Bytes the tensors will take on the GPU."""
        vectors = sum(-(-sum(len(s.rows) for s in v) * 4 // 256) * 256 for v in self.vectors.values())
        return sum(m.nbytes for m in self.matrices.values()) + vectors

    def with_dtype(self, dtype: str) -> int:
        """Bytes the tensors would take in another dtype."""
        return Layout(self.config, self.checkpoint, dtype).nbytes

    def _find_prefix(self) -> str:
        """Base models are saved without ``model.`` in front."""
        embed = self._names["embed"]
        bare = embed.removeprefix("model.")
        return "" if bare in self.checkpoint.entries and embed not in self.checkpoint.entries else "model."

    def _name(self, role: str, layer: int, suffix: str = "weight") -> str:
        name = self._names[role].format(i=layer).removesuffix("weight") + suffix
        if self._prefix == "":
            name = name.removeprefix("model.")
        entries = self.checkpoint.entries
        if role == "embed" and self.config.tie_word_embeddings and name not in entries:
            name = self._names["head"]  # tied tensors may be stored under either name
        if name not in entries:
            raise UnsupportedModelError(
                f"The checkpoint has no tensor {name}.",
                "config.json says that the model has it.",
                "Check that the files belong together, or download the model again.",
            )
        return name

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        self._seen.add(name)
        self.checkpoint.dtype(name)
        if self.checkpoint.entries[name].shape != shape:
            raise UnsupportedModelError(
                f"The tensor {name} has the shape {list(self.checkpoint.entries[name].shape)}, not {list(shape)}.",
                "config.json and the weights do not belong together.",
                "Download the model again.",
            )

    def _sources(
        self, sources: list[tuple[str, npt.NDArray[np.int64]]], layer: int, columns: int | None, suffix: str
    ) -> tuple[Source, ...]:
        out = []
        for role, rows in sources:
            name = self._name(role, layer, suffix)
            self._check(name, (len(rows),) if columns is None else (len(rows), columns))
            out.append(Source(name, rows))
        return tuple(out)

    def _matrix(
        self, role: str, columns: int, sources: list[tuple[str, npt.NDArray[np.int64]]], layer: int = 0
    ) -> Matrix:
        found = self._sources(sources, layer, columns, "weight")
        stored = {self.checkpoint.dtype(s.name) for s in found}
        dtype = DTYPES.get(self.dtype) or (stored.pop() if len(stored) == 1 else "f32")
        return Matrix(found, columns, dtype)

    def _vector(
        self,
        key: str,
        columns: int,
        sources: list[tuple[str, npt.NDArray[np.int64]]],
        layer: int = 0,
        suffix: str = "weight",
    ) -> None:
        self.vectors[key] = self._sources(sources, layer, None, suffix)

    def _refuse_unknown(self) -> None:
        ignored = [re.compile(p) for p in ARCHITECTURES[self.config.model_type].ignored]
        tied = {self._names["head"], self._names["embed"]} if self.config.tie_word_embeddings else set()
        for name in self.checkpoint.entries.keys() - self._seen - tied:
            if not any(p.fullmatch(name) for p in ignored):
                raise UnsupportedModelError(
                    f"The checkpoint has a tensor {name} that config.json does not account for.",
                    "Leaving it out could give wrong text.",
                    "Check that the files belong together.",
                )


def _adjacent_pairs(heads: int, head_dim: int) -> npt.NDArray[np.int64]:
    """Where the rows of q or k go so that a rotary pair is adjacent: i and i + head_dim/2 become 2i and 2i + 1."""
    within = np.concatenate([np.arange(0, head_dim, 2), np.arange(1, head_dim, 2)])
    rows: npt.NDArray[np.int64] = (np.arange(heads)[:, None] * head_dim + within).reshape(-1)
    return rows


def load_weights(layout: Layout, device: Device, progress: Progress | None = None) -> Weights:
    """Upload everything, slice by slice. ``progress(bytes done, bytes in all)`` is called along the way."""
    total, done = layout.nbytes, 0

    def load(matrix: Matrix) -> Tensor:
        nonlocal done
        tensor = device.empty((matrix.rows, matrix.columns), matrix.dtype, purpose="weights")
        step = max(1, _SLICE_BYTES // (row_items(matrix.columns, matrix.dtype) * _ITEM[matrix.dtype]))
        inverse = np.empty(matrix.rows, np.int64)  # row of the concatenated sources for every row of the result
        inverse[np.concatenate([s.rows for s in matrix.sources])] = np.arange(matrix.rows)
        bounds = np.cumsum([0] + [len(s.rows) for s in matrix.sources])
        views = [layout.checkpoint.read(s.name) for s in matrix.sources]
        for first in range(0, matrix.rows, step):
            wanted = inverse[first : first + step]
            slices = np.zeros((len(wanted), matrix.columns), np.uint16 if matrix.dtype == "bf16" else _numpy(matrix))
            for i, view in enumerate(views):
                mine = (bounds[i] <= wanted) & (wanted < bounds[i + 1])
                slices[mine] = _convert(
                    view[wanted[mine] - bounds[i]], layout.checkpoint.dtype(_name(matrix, i)), matrix
                )
            packed = pack_rows(slices, matrix.dtype)
            device.upload_rows(tensor.parts, first, packed)
            done += packed.nbytes
            if progress is not None:
                progress(done, total)
        return tensor

    matrices = {key: load(matrix) for key, matrix in layout.matrices.items()}
    names = list(layout.vectors)
    arrays: list[npt.NDArray[np.generic]] = [_vector_values(layout, layout.vectors[name]) for name in names]
    vectors = dict(zip(names, device.windows(arrays, purpose="weights"), strict=True))
    everything = matrices | vectors
    layers = []
    for i in range(layout.config.num_hidden_layers):
        prefix = f"{i}."
        layers.append(Layer(**{k.removeprefix(prefix): t for k, t in everything.items() if k.startswith(prefix)}))
    device.finish()
    return Weights(matrices["embed"], matrices.get("head", matrices["embed"]), vectors["norm"], layers)


def _name(matrix: Matrix, i: int) -> str:
    return matrix.sources[i].name


def _numpy(matrix: Matrix) -> type[np.generic]:
    return np.float16 if matrix.dtype == "f16" else np.float32


def _convert(values: npt.NDArray[np.generic], stored: str, matrix: Matrix) -> npt.NDArray[np.generic]:
    """Stored values in the matrix's dtype: unchanged, widened exactly, or rounded to nearest where that was asked."""
    if stored == matrix.dtype:
        return values
    wide = widen_bf16(values) if stored == "bf16" else values.astype(np.float32)
    if matrix.dtype == "bf16":
        return pack_rows(wide, "bf16").view(np.uint16)[:, : wide.shape[1]]
    if matrix.dtype == "f16" and len(wide) and float(np.abs(wide).max()) > 65504:
        raise UnsupportedModelError(
            f"{matrix.sources[0].name} holds values beyond float16's range.",
            f"The largest is {float(np.abs(wide).max()):g}; float16 ends at 65504.",
            "Load it with --dtype bfloat16 or float32.",
        )
    return wide.astype(_numpy(matrix))


def _vector_values(layout: Layout, sources: tuple[Source, ...]) -> npt.NDArray[np.float32]:
    out = np.empty(sum(len(s.rows) for s in sources), np.float32)
    for s in sources:
        values = layout.checkpoint.read(s.name)
        out[s.rows] = widen_bf16(values) if layout.checkpoint.dtype(s.name) == "bf16" else values
    return out
