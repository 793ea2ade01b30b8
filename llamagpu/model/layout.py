"""The layout of a decoder's tensors on the GPU."""

from __future__ import annotations

import numpy as np

from llamagpu.model.architecture import BASE
from llamagpu.model.architectures import ARCHITECTURES
from llamagpu.model.config import Config
from llamagpu.model.sources import Rows, Source
from llamagpu.model.tensor_layout import DTYPES, FLOATS, Key, Matrix, Piece, TensorLayout, Vector

__all__ = ["DTYPES", "FLOATS", "Key", "Layout", "Matrix", "Piece", "Vector"]


class Layout(TensorLayout):
    """The matrices and vectors of a decoder by key; see ``TensorLayout``.

    Matrices that are multiplied with the same vectors are fused: q, k and v one after another (``qkv``), gate and up
    interleaved by rows (``gate_up``).

    Args:
        head: whether logits are computed. Without it, an embedding model needs no matrix for them.

    Attributes:
        has_head: the argument ``head``.
    """

    def __init__(self, config: Config, source: Source, dtype: str = "auto", head: bool = True):
        self._row = ARCHITECTURES[config.model_type]
        super().__init__(source, dtype, self._row.ignored)
        self.config, self.has_head = config, head
        self._outer()
        for i in range(config.num_hidden_layers):
            self._layer(i)
        if config.tie_word_embeddings or not head:  # tied tensors may be stored twice
            self._seen |= {self._row.tensor(role) for role in ("head", "embed")}
        self._refuse_unknown()

    @property
    def head(self) -> Matrix:
        """The matrix that makes logits: the embedding if they are tied."""
        return self.matrices.get(Key("head")) or self.matrices[Key("embed")]

    def with_dtype(self, dtype: str) -> Layout:
        """The same model in another dtype."""
        return Layout(self.config, self.source, dtype, self.has_head)

    def _outer(self) -> None:
        c, h = self.config, self.config.hidden_size
        self._matrix(Key("embed"), h, [("embed", np.arange(c.vocab_size))])
        if self.has_head and not c.tie_word_embeddings:
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

    def _norm(self, key: Key, pieces: list[tuple[str, Rows]]) -> None:
        """The weights of a norm; ones if the architecture's norms have none."""
        if self._row.norm_weights:
            self._vector(key, pieces, offset=self._row.norm_offset)
        else:
            self.vectors[key] = Vector((), sum(len(rows) for _, rows in pieces), 1.0)

    def _name(self, role: str, layer: int | None, suffix: str) -> str:
        name = self._row.tensor(role, layer, suffix)
        if role == "embed" and self.config.tie_word_embeddings and name not in self._stored:
            name = self._row.tensor("head")  # tied tensors may be stored under either name
        bare = name.removeprefix(BASE)  # base models are stored without the prefix
        return bare if name not in self._stored and bare in self._stored else name


def _gate_up(size: int) -> list[tuple[str, Rows]]:
    """Rows of gate and up, interleaved."""
    return [("gate", 2 * np.arange(size)), ("up", 2 * np.arange(size) + 1)]
