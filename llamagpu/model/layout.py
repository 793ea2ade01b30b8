"""The layout of a model's tensors on the GPU: the source rows of each tensor, all checked before loading."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from llamagpu.errors import UnsupportedModelError
from llamagpu.gpu import LONG_NAMES, Affine, row_items
from llamagpu.model.architectures import ARCHITECTURES
from llamagpu.model.config import Config
from llamagpu.model.sources import Format, Rows, Source, Stored

FLOATS = {long: short for short, long in LONG_NAMES.items() if short != "u32"}
QUANTIZED = {"int8": Affine(8, 64), "int4": Affine(4, 64)}
DTYPES = ("auto", *FLOATS, *QUANTIZED)
_ITEM = {"f32": 4, "f16": 2, "bf16": 2}


@dataclass(frozen=True)
class Piece:
    """A tensor of the source that is a part of a fused one: its rows go to ``rows`` of the result, in this order."""

    name: str
    rows: Rows
    stored: Stored


@dataclass(frozen=True)
class Matrix:
    """A matrix [rows, columns] on the GPU, and the source tensors that it is made from."""

    pieces: tuple[Piece, ...]
    columns: int
    format: Format

    @classmethod
    def bare(cls, rows: int, columns: int, format: Format) -> Matrix:
        """A matrix of any size without a source tensor, for measurements."""
        return cls((Piece("", np.arange(rows), Stored((rows, columns), format)),), columns, format)

    @property
    def rows(self) -> int:
        """Rows of all pieces."""
        return sum(len(p.rows) for p in self.pieces)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row on the GPU."""
        if isinstance(self.format, Affine):
            return self.format.row_bytes(self.columns)
        return row_items(self.columns, self.format) * _ITEM[self.format]

    @property
    def nbytes(self) -> int:
        """Bytes on the GPU."""
        return self.rows * self.row_bytes

    @property
    def format_name(self) -> str:
        """The format as tunings name it: f32, f16, bf16, affine8 or affine4."""
        return f"affine{self.format.bits}" if isinstance(self.format, Affine) else self.format


@dataclass(frozen=True)
class Key:
    """The role of a tensor in the model, and its layer; None outside of the layers."""

    role: str
    layer: int | None = None


@dataclass(frozen=True)
class Vector:
    """A float32 vector on the GPU: tensors of the source, plus an offset. Without tensors, all of it is the offset."""

    pieces: tuple[Piece, ...]
    size: int
    offset: float = 0.0


class Layout:
    """The matrices and vectors of a model by key.

    Matrices that are multiplied with the same vectors are fused: q, k and v one after another (``qkv``), gate and up
    interleaved by rows (``gate_up``).

    Args:
        dtype: ``auto`` (as stored), ``float32``, ``float16``, ``bfloat16``, ``int8`` or ``int4``. Quantizing uses
            groups of 64; a tensor whose columns they do not divide stays as it is stored, and ``unquantized`` names
            it.

    Raises:
        UnsupportedModelError: a tensor is missing, has another shape or dtype, or the config does not account for it.
    """

    def __init__(self, config: Config, source: Source, dtype: str = "auto"):
        self.config, self.source, self.dtype = config, source, dtype
        self._row = ARCHITECTURES[config.model_type]
        self._stored = source.tensors()
        self._seen: set[str] = set()
        self.unquantized: list[str] = []
        self.matrices: dict[Key, Matrix] = {}
        self.vectors: dict[Key, Vector] = {}
        self._outer()
        for i in range(config.num_hidden_layers):
            self._layer(i)
        self._refuse_unknown()

    @property
    def nbytes(self) -> int:
        """Bytes the tensors will take on the GPU."""
        vectors = sum(-(-v.size * 4 // 256) * 256 for v in self.vectors.values())
        return sum(m.nbytes for m in self.matrices.values()) + vectors

    @property
    def parameters(self) -> int:
        """Weights of the model; tied ones count once."""
        vectors = sum(len(p.rows) for v in self.vectors.values() for p in v.pieces)
        return sum(m.rows * m.columns for m in self.matrices.values()) + vectors

    @property
    def head(self) -> Matrix:
        """The matrix that makes logits: the embedding if they are tied."""
        return self.matrices.get(Key("head")) or self.matrices[Key("embed")]

    def with_dtype(self, dtype: str) -> Layout:
        """The same model in another dtype."""
        return Layout(self.config, self.source, dtype)

    def _outer(self) -> None:
        c, h = self.config, self.config.hidden_size
        self._matrix(Key("embed"), h, [("embed", np.arange(c.vocab_size))])
        if not c.tie_word_embeddings:
            self._matrix(Key("head"), h, [("head", np.arange(c.vocab_size))])
        self._norm(Key("norm"), [("norm", np.arange(h))])
        if c.outer.embed_norm:
            self.vectors[Key("embed_norm")] = Vector((), h, 1.0)

    def _layer(self, i: int) -> None:
        c, spec = self.config, self.config.layers[i]
        h, q, kv, mlp = c.hidden_size, c.q_size, c.kv_size, c.intermediate_size
        norms = ["attn_norm", "mlp_norm"] if spec.pre_norms else []
        norms += ["attn_post_norm", "mlp_post_norm"] if spec.post_norms else []
        for role in norms:
            self._norm(Key(role, i), [(role, np.arange(h))])
        if spec.qk_norm is not None:
            first, second = (q, kv) if spec.qk_norm == "row" else (c.head_dim, c.head_dim)
            self._norm(Key("qk_norm", i), [("q_norm", np.arange(first)), ("k_norm", first + np.arange(second))])
        fused: list[tuple[str, int, bool, list[tuple[str, Rows]]]] = [
            ("qkv", h, spec.qkv_bias, [("q", np.arange(q)), ("k", np.arange(kv) + q), ("v", np.arange(kv) + q + kv)]),
            ("o", q, spec.o_bias, [("o", np.arange(h))]),
            ("gate_up", h, spec.mlp_bias, _gate_up(mlp) if spec.gated else [("up", np.arange(mlp))]),
            ("down", mlp, spec.mlp_bias, [("down", np.arange(h))]),
        ]
        for role, columns, bias, pieces in fused:
            if role in self._row.modules:  # fused in the checkpoint
                pieces = [(role, np.concatenate([rows for _, rows in pieces]))]
            self._matrix(Key(role, i), columns, pieces)
            if bias:
                self._vector(Key(f"{role}_bias", i), pieces, "bias")

    def _piece(self, role: str, layer: int | None, rows: Rows, columns: int | None, suffix: str = "weight") -> Piece:
        """A tensor of the source, its shape checked: [rows, columns], or a vector [rows]."""
        name = self._row.tensor(role, layer, suffix)
        if role == "embed" and self.config.tie_word_embeddings and name not in self._stored:
            name = self._row.tensor("head")  # tied tensors may be stored under either name
        if name not in self._stored:
            raise UnsupportedModelError(
                f"The checkpoint has no tensor {name}.",
                "config.json requires it.",
                "Check that the files belong together, or download the model again.",
            )
        self._seen.add(name)
        stored = self._stored[name]
        if not isinstance(stored.format, Affine) and stored.format not in _ITEM:
            raise UnsupportedModelError(
                f"The tensor {name} has the dtype {stored.format.upper()}.",
                "Weights are F32, F16 or BF16. For packed weights, config.json does not say how they were quantized."
                if stored.format == "u32"
                else "Weights are F32, F16 or BF16.",
                "Convert the checkpoint, or choose another model.",
            )
        shape = (len(rows),) if columns is None else (len(rows), columns)
        if stored.shape != shape:
            raise UnsupportedModelError(
                f"The tensor {name} has the shape {list(stored.shape)}, not {list(shape)}.",
                "config.json requires the second.",
                "Check that the files belong together.",
            )
        return Piece(name, rows, stored)

    def _matrix(self, key: Key, columns: int, pieces: list[tuple[str, Rows]]) -> None:
        found = tuple(self._piece(role, key.layer, rows, columns) for role, rows in pieces)
        as_stored = _common([p.stored.format for p in found])
        format = as_stored
        if self.dtype in FLOATS:
            format = FLOATS[self.dtype]
        elif self.dtype in QUANTIZED and not isinstance(as_stored, Affine):
            format = QUANTIZED[self.dtype]
            if columns % QUANTIZED[self.dtype].group:
                format = as_stored
                self.unquantized += [p.name for p in found]
        self.matrices[key] = Matrix(found, columns, format)

    def _vector(self, key: Key, pieces: list[tuple[str, Rows]], suffix: str = "weight", offset: float = 0.0) -> None:
        found = tuple(self._piece(role, key.layer, rows, None, suffix) for role, rows in pieces)
        self.vectors[key] = Vector(found, sum(len(rows) for _, rows in pieces), offset)

    def _norm(self, key: Key, pieces: list[tuple[str, Rows]]) -> None:
        """The weights of a norm; ones if the architecture's norms have none."""
        if self._row.norm_weights:
            self._vector(key, pieces, offset=self._row.norm_offset)
        else:
            self.vectors[key] = Vector((), sum(len(rows) for _, rows in pieces), 1.0)

    def _refuse_unknown(self) -> None:
        ignored = [re.compile(p) for p in self._row.ignored]
        tied = {self._row.tensor(r) for r in ("head", "embed")} if self.config.tie_word_embeddings else set()
        for name in self._stored.keys() - self._seen - tied:
            if not any(p.fullmatch(name) for p in ignored):
                raise UnsupportedModelError(
                    f"The checkpoint has a tensor {name} that config.json does not account for.",
                    "Leaving it out could give wrong text.",
                    "Check that the files belong together.",
                )


def _gate_up(size: int) -> list[tuple[str, Rows]]:
    """Rows of gate and up, interleaved."""
    return [("gate", 2 * np.arange(size)), ("up", 2 * np.arange(size) + 1)]


def _common(formats: list[Format]) -> Format:
    """The format that holds tensors of several formats exactly."""
    affine = [f for f in formats if isinstance(f, Affine)]
    if len(affine) == len(formats):
        return Affine.common(affine)
    return formats[0] if len(set(formats)) == 1 else "f32"
