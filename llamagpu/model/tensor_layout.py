"""The tensors of a model on the GPU: the source rows of each one, all checked before loading."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from llamagpu.errors import UnsupportedModelError
from llamagpu.gpu import LONG_NAMES, Affine, affine_bytes, row_items, tensor_bytes
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

    def held(self, woven: bool) -> int:
        """Bytes that are allocated for it."""
        if isinstance(self.format, Affine):
            return affine_bytes(self.rows, self.columns, self.format, woven)
        return tensor_bytes(self.rows, self.columns, self.format, woven)

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


class TensorLayout:
    """The matrices and vectors of a model by key.

    Args:
        dtype: ``auto`` (as stored), ``float32``, ``float16``, ``bfloat16``, ``int8`` or ``int4``. Quantizing uses
            groups of 64; a tensor whose columns they do not divide stays as it is stored, and ``unquantized`` names
            it.
        ignored: patterns of tensors that carry no weights of the model.

    Raises:
        UnsupportedModelError: a tensor is missing, has another shape or dtype, or the config does not account for it.
    """

    def __init__(self, source: Source, dtype: str, ignored: tuple[str, ...]):
        self.source, self.dtype, self._ignored = source, dtype, ignored
        self._stored = source.tensors()
        self._seen: set[str] = set()
        self.unquantized: list[str] = []
        self.matrices: dict[Key, Matrix] = {}
        self.vectors: dict[Key, Vector] = {}

    def _name(self, role: str, layer: int | None, suffix: str) -> str:
        """The name of a role's tensor in the source."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors on the GPU."""
        return sum(m.nbytes for m in self.matrices.values()) + self._vector_bytes

    def held(self, woven: bool) -> int:
        """Bytes that are allocated for the tensors. ``woven`` pads matrices to 64 rows."""
        return sum(m.held(woven) for m in self.matrices.values()) + self._vector_bytes

    @property
    def _vector_bytes(self) -> int:
        return max(256, sum(-(-v.size * 4 // 256) * 256 for v in self.vectors.values()))

    @property
    def parameters(self) -> int:
        """Weights of the model; tied ones count once."""
        vectors = sum(len(p.rows) for v in self.vectors.values() for p in v.pieces)
        return sum(m.rows * m.columns for m in self.matrices.values()) + vectors

    def _piece(self, role: str, layer: int | None, rows: Rows, columns: int | None, suffix: str = "weight") -> Piece:
        """A tensor of the source, its shape checked: [rows, columns], or a vector [rows]."""
        name = self._name(role, layer, suffix)
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

    def _refuse_unknown(self) -> None:
        ignored = [re.compile(p) for p in self._ignored]
        for name in self._stored.keys() - self._seen:
            if not any(p.fullmatch(name) for p in ignored):
                raise UnsupportedModelError(
                    f"The checkpoint has a tensor {name} that config.json does not account for.",
                    "Leaving it out could give wrong text.",
                    "Check that the files belong together.",
                )


def _common(formats: list[Format]) -> Format:
    """The format that holds tensors of several formats exactly."""
    affine = [f for f in formats if isinstance(f, Affine)]
    if len(affine) == len(formats):
        return Affine.common(affine)
    return formats[0] if len(set(formats)) == 1 else "f32"
