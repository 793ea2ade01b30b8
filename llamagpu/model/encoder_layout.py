"""The layout of an encoder's tensors on the GPU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llamagpu.kernels.scores import REACH
from llamagpu.model.encoder_config import BUCKETS, ENCODERS, EncoderConfig
from llamagpu.model.sources import Rows, Source
from llamagpu.model.tensor_layout import Key, TensorLayout
from llamagpu.model.weights import wide_rows

Floats = npt.NDArray[np.float32]


class EncoderLayout(TensorLayout):
    """The matrices and vectors of an encoder by key; see ``TensorLayout``. q, k and v are fused.

    Args:
        ignored: patterns of further tensors that belong to something else, such as a classifier.
    """

    def __init__(self, config: EncoderConfig, source: Source, dtype: str = "auto", ignored: tuple[str, ...] = ()):
        self._row = ENCODERS[config.model_type]
        super().__init__(source, dtype, (*self._row.ignored, *ignored))
        self.config = config
        has_head = any(name.startswith(self._row.prefix) for name in self._stored)
        self.prefix = self._row.prefix if has_head else ""
        h = config.hidden_size
        self._matrix(Key("words"), h, [("words", np.arange(config.vocab_size))])
        self._layer_norm("embed_norm", None)
        for i in range(config.num_hidden_layers):
            self._layer(i)
        self._tables = {role: self._piece(role, None, np.arange(rows), n) for role, rows, n in self._stored_tables()}
        self._refuse_unknown()

    @property
    def parameters(self) -> int:
        """Weights of the model."""
        return super().parameters + sum(rows * columns for _, rows, columns in self._stored_tables())

    @property
    def tables(self) -> list[tuple[int, int]]:
        """The shapes of ``positions`` and ``relative``, float32."""
        c, h = self.config, self.config.hidden_size
        relative = [(c.num_attention_heads, 2 * REACH)] if "relative" in self._tables else []
        return [(max(1, c.type_vocab_size) * c.positions, h), *relative]

    def with_dtype(self, dtype: str) -> EncoderLayout:
        """The same model in another dtype."""
        return EncoderLayout(self.config, self.source, dtype, self._ignored)

    def _name(self, role: str, layer: int | None, suffix: str) -> str:
        name = f"{self.prefix}{self._row.modules[role].format(i=layer)}.{suffix}"
        # Checkpoints that were converted from TensorFlow call the weights of LayerNorm gamma and beta.
        older = name.removesuffix(suffix) + {"weight": "gamma", "bias": "beta"}[suffix]
        return older if name not in self._stored and older in self._stored else name

    def _layer(self, i: int) -> None:
        c, h = self.config, self.config.hidden_size
        fused: list[tuple[str, int, list[tuple[str, Rows]]]] = [
            ("qkv", h, [("q", np.arange(h)), ("k", np.arange(h) + h), ("v", np.arange(h) + 2 * h)]),
            ("o", h, [("o", np.arange(h))]),
            ("up", h, [("up", np.arange(c.intermediate_size))]),
            ("down", c.intermediate_size, [("down", np.arange(h))]),
        ]
        for role, columns, pieces in fused:
            self._matrix(Key(role, i), columns, pieces)
            self._vector(Key(f"{role}_bias", i), pieces, "bias")
        self._layer_norm("attn_norm", i)
        self._layer_norm("mlp_norm", i)

    def _layer_norm(self, role: str, layer: int | None) -> None:
        rows = [(role, np.arange(self.config.hidden_size))]
        self._vector(Key(role, layer), rows)
        self._vector(Key(f"{role}_bias", layer), rows, "bias")

    def _stored_tables(self) -> list[tuple[str, int, int]]:
        """Roles, rows and columns of the tables in the checkpoint."""
        c, h = self.config, self.config.hidden_size
        tables = [("positions", c.first_position + c.positions, h)]
        tables += [("tasks", c.task_type_vocab_size, h), ("types", c.type_vocab_size, h)]
        if "relative" in self._row.modules:
            tables.append(("relative", BUCKETS, c.num_attention_heads))
        return [table for table in tables if table[1]]

    def positions(self) -> Floats:
        """What is added to a word's embedding: float32 [types · positions, hidden], for every token type the embeddings
        of the type, of each position, and of the first task."""
        c = self.config
        table = wide_rows(self, self._tables["positions"], np.arange(c.first_position, c.first_position + c.positions))
        if "tasks" in self._tables:
            table += wide_rows(self, self._tables["tasks"], np.arange(1))
        if "types" not in self._tables:
            return table
        types = wide_rows(self, self._tables["types"], np.arange(c.type_vocab_size))
        return np.concatenate([table + row for row in types])

    def relative(self) -> Floats | None:
        """What is added to the scores: float32 [heads, 2 · REACH], for every distance from query to key; None if
        nothing is."""
        if "relative" not in self._tables:
            return None
        return np.ascontiguousarray(wide_rows(self, self._tables["relative"], _buckets(np.arange(-REACH, REACH))).T)


def _buckets(distances: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The bucket of each distance from query to key (``relative_position_bucket`` of transformers' MPNet, with its
    greatest distance of 128): half of them for keys behind the query, and of each half the first half for single
    distances, the second for ranges that grow logarithmically."""
    half, single = BUCKETS // 2, BUCKETS // 4
    n = np.abs(distances)
    ranges = single + (np.log(np.maximum(n, 1) / single) / np.log(REACH / single) * (half - single)).astype(np.int64)
    return np.where(distances > 0, half, 0) + np.where(n < single, n, np.minimum(ranges, half - 1))
