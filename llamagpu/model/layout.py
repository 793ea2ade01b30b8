"""Which checkpoint tensors a model needs and where their rows go on the GPU: worked out and checked before loading."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llamagpu.errors import UnsupportedModelError
from llamagpu.gpu import Affine, row_items
from llamagpu.model.architectures import ARCHITECTURES
from llamagpu.model.checkpoint import Checkpoint
from llamagpu.model.config import Config

FLOATS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
QUANTISED = {"int8": Affine(8, 64), "int4": Affine(4, 64)}
DTYPES = ("auto", *FLOATS, *QUANTISED)
_ITEM = {"f32": 4, "f16": 2, "bf16": 2}
Rows = npt.NDArray[np.int64]
Format = str | Affine


@dataclass(frozen=True)
class Source:
    """One checkpoint tensor of a fused one: its rows go to ``rows`` of the result, in this order. ``stored`` is its
    format in the file; a quantised one has ``scales`` and ``biases`` beside its ``weight``."""

    name: str
    rows: Rows
    stored: Format

    def beside(self, suffix: str) -> str:
        """The name of the tensor's scales or biases."""
        return self.name.removesuffix("weight") + suffix


@dataclass(frozen=True)
class Matrix:
    """A matrix [rows, columns] as it will lie on the GPU, and the checkpoint tensors it is made from."""

    sources: tuple[Source, ...]
    columns: int
    format: Format

    @property
    def rows(self) -> int:
        return sum(len(s.rows) for s in self.sources)

    @property
    def row_bytes(self) -> int:
        if isinstance(self.format, Affine):
            return self.format.row_bytes(self.columns)
        return row_items(self.columns, self.format) * _ITEM[self.format]

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes


class Layout:
    """The matrices and vectors of a model by role (``0.qkv``, ``0.attn_norm``, ``embed``, …).

    Args:
        dtype: ``auto`` (as stored), ``float32``, ``float16``, ``bfloat16``, ``int8`` or ``int4``. Quantising takes
            groups of 64; a tensor that they do not divide stays as it is stored, and ``unquantized`` names it.

    Raises:
        UnsupportedModelError: a tensor is missing, has another shape or dtype, or is not understood.
    """

    def __init__(self, config: Config, checkpoint: Checkpoint, dtype: str = "auto"):
        self.config, self.checkpoint, self.dtype = config, checkpoint, dtype
        self._names = ARCHITECTURES[config.model_type].tensors
        self._prefix = self._find_prefix()
        self._seen: set[str] = set()
        self.unquantized: list[str] = []
        self.matrices: dict[str, Matrix] = {}
        self.vectors: dict[str, tuple[Source, ...]] = {}
        self._outer()
        for i in range(config.num_hidden_layers):
            self._layer(i)
        self._refuse_unknown()

    @property
    def nbytes(self) -> int:
        """Bytes the tensors will take on the GPU."""
        vectors = sum(-(-sum(len(s.rows) for s in v) * 4 // 256) * 256 for v in self.vectors.values())
        return sum(m.nbytes for m in self.matrices.values()) + vectors

    @property
    def parameters(self) -> int:
        """Weights of the model; tied ones count once."""
        vectors = sum(len(s.rows) for v in self.vectors.values() for s in v)
        return sum(m.rows * m.columns for m in self.matrices.values()) + vectors

    def with_dtype(self, dtype: str) -> int:
        """Bytes the tensors would take in another dtype."""
        return Layout(self.config, self.checkpoint, dtype).nbytes

    def _outer(self) -> None:
        c, h = self.config, self.config.hidden_size
        self._matrix("embed", "embed", h, [("embed", np.arange(c.vocab_size))])
        if not c.tie_word_embeddings:
            self._matrix("head", "head", h, [("head", np.arange(c.vocab_size))])
        self._vector("norm", [("norm", np.arange(h))])

    def _layer(self, i: int) -> None:
        c, h = self.config, self.config.hidden_size
        q, kv, mlp = c.q_size, c.kv_size, c.intermediate_size
        for role in ("attn_norm", "mlp_norm"):
            self._vector(f"{i}.{role}", [(role, np.arange(h))], i)
        qkv = [
            ("q", adjacent_pairs(c.num_attention_heads, c.head_dim)),
            ("k", adjacent_pairs(c.num_key_value_heads, c.head_dim) + q),
            ("v", np.arange(kv) + q + kv),
        ]
        fused: dict[str, tuple[int, bool, list[tuple[str, Rows]]]] = {
            "qkv": (h, c.attention_bias, qkv),
            "o": (q, c.attention_bias, [("o", np.arange(h))]),
            "gate_up": (h, c.mlp_bias, [("gate", 2 * np.arange(mlp)), ("up", 2 * np.arange(mlp) + 1)]),
            "down": (mlp, c.mlp_bias, [("down", np.arange(h))]),
        }
        for role, (columns, bias, sources) in fused.items():
            self._matrix(f"{i}.{role}", role, columns, sources, i)
            if bias:
                self._vector(f"{i}.{role}_bias", sources, i, "bias")

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

    def _check(self, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...] = ("f32", "f16", "bf16")) -> None:
        self._seen.add(name)
        if name not in self.checkpoint.entries:
            raise UnsupportedModelError(f"The checkpoint has no tensor {name}.", "A quantised tensor needs it.")
        dtype = self.checkpoint.dtype(name)
        if dtype not in dtypes:
            raise UnsupportedModelError(
                f"The tensor {name} has the dtype {self.checkpoint.entries[name].dtype}.",
                f"Expected: {', '.join(dtypes)}. config.json and the weights do not belong together.",
                "Download the model again.",
            )
        if self.checkpoint.entries[name].shape != shape:
            raise UnsupportedModelError(
                f"The tensor {name} has the shape {list(self.checkpoint.entries[name].shape)}, not {list(shape)}.",
                "config.json and the weights do not belong together.",
                "Download the model again.",
            )

    def _source(self, role: str, rows: Rows, layer: int, columns: int) -> Source:
        name = self._name(role, layer)
        plain = Source(name, rows, self.checkpoint.dtype(name))
        if plain.beside("scales") not in self.checkpoint.entries:
            self._check(name, (len(rows), columns))
            return plain
        pair = None if self.config.quantization is None else self.config.quantization.of(name.removesuffix(".weight"))
        if pair is None or columns % pair[1]:
            raise UnsupportedModelError(
                f"The tensor {name} is quantised, and config.json does not say how.",
                "Its quantization block must give bits and group_size for it.",
                "Download the model again.",
            )
        bits, group = pair
        affine = Affine(bits, group, self.checkpoint.dtype(plain.beside("scales")))
        self._check(name, (len(rows), columns * bits // 32), ("u32",))
        for suffix in ("scales", "biases"):
            self._check(plain.beside(suffix), (len(rows), columns // group), (affine.scales,))
        return Source(name, rows, affine)

    def _matrix(self, key: str, role: str, columns: int, sources: list[tuple[str, Rows]], layer: int = 0) -> None:
        found = tuple(self._source(name, rows, layer, columns) for name, rows in sources)
        stored = {s.stored for s in found}
        as_stored: Format = stored.pop() if len(stored) == 1 else "f32"
        format = as_stored
        if self.dtype in FLOATS:
            format = FLOATS[self.dtype]
        elif self.dtype in QUANTISED and not isinstance(as_stored, Affine):
            format = QUANTISED[self.dtype]
            if columns % QUANTISED[self.dtype].group:
                format = as_stored
                self.unquantized += [s.name for s in found]
        self.matrices[key] = Matrix(found, columns, format)

    def _vector(self, key: str, sources: list[tuple[str, Rows]], layer: int = 0, suffix: str = "weight") -> None:
        found = []
        for role, rows in sources:
            name = self._name(role, layer, suffix)
            self._check(name, (len(rows),))
            found.append(Source(name, rows, self.checkpoint.dtype(name)))
        self.vectors[key] = tuple(found)

    def _refuse_unknown(self) -> None:
        ignored = [re.compile(p) for p in ARCHITECTURES[self.config.model_type].ignored]
        tied = {self._names["head"], self._names["embed"]} if self.config.tie_word_embeddings else set()
        tied |= {n.removesuffix("weight") + s for n in tied for s in ("scales", "biases")}
        for name in self.checkpoint.entries.keys() - self._seen - tied:
            if not any(p.fullmatch(name) for p in ignored):
                raise UnsupportedModelError(
                    f"The checkpoint has a tensor {name} that config.json does not account for.",
                    "Leaving it out could give wrong text.",
                    "Check that the files belong together.",
                )


def adjacent_pairs(heads: int, head_dim: int) -> Rows:
    """Where the rows of q or k go so that a rotary pair is adjacent: i and i + head_dim/2 become 2i and 2i + 1."""
    within = np.concatenate([np.arange(0, head_dim, 2), np.arange(1, head_dim, 2)])
    rows: Rows = (np.arange(heads)[:, None] * head_dim + within).reshape(-1)
    return rows
