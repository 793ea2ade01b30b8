"""What the calls of a forward pass should have computed: the kernels' references, on the values that each call read.

The weights come from the model's files, everything else from the GPU, as it was before the call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Affine, Tensor, widen_bf16
from llamagpu.kernels import REGISTRY
from llamagpu.kernels.check import by_name, relative_error
from llamagpu.kernels.entry import F64, Arrays, Expected
from llamagpu.kernels.kv_write import PAGE, Cache, address
from llamagpu.kernels.quantization import dequantize_rows
from llamagpu.model.calls import CALLS, SAMPLING
from llamagpu.model.layout import Key, Layout, Matrix
from llamagpu.model.model import Model
from llamagpu.model.replay import Step
from llamagpu.model.rope_table import rope_table
from llamagpu.model.weights import float_slice, quantized_slice, vector_values

_NAMES = {
    "qkv": "q, k and v",
    "gate_up": "gate and up",
    "head": "logits",
    "embed": "logits",
    "attn_norm": "attn norm",
    "mlp_norm": "mlp norm",
    "norm": "final norm",
    "attn_post_norm": "attn post-norm",
    "mlp_post_norm": "mlp post-norm",
    "embed_norm": "embedding norm",
}


@dataclass(frozen=True)
class Intermediate:
    """A named result of a call: its layer (None outside of the layers), the kernel, and its error in units of its
    scale."""

    name: str
    layer: int | None
    kernel: str
    program: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance


class References:
    """The references of a model's calls.

    Args:
        caches: the buffers of keys and values by layer, of the plans that are replayed.
    """

    def __init__(self, model: Model, layout: Layout, caches: list[Cache]):
        self._layout, self.config, self.kv = layout, model.config, model.sizes.kv_dtype
        self._keys: dict[Any, Key] = {}
        outer: dict[str, Tensor | None] = {
            "embed": model.weights.embed,
            "norm": model.weights.norm,
            "embed_norm": model.weights.embed_norm,
        }
        if model.weights.head is not model.weights.embed:
            outer["head"] = model.weights.head
        named = [(Key(role), t) for role, t in outer.items()]
        named += [(Key(role, i), t) for i, layer in enumerate(model.weights.layers) for role, t in vars(layer).items()]
        for key, tensor in named:
            if tensor is not None:
                self._keys |= {(p.buffer, p.offset): key for p in tensor.parts}
        self._tables = {
            t.part.buffer: rope_table(rope, model.config.head_dim, model.context)
            for rope, t in model.forward.rotations.items()
        }
        self._caches = {cache.data.part.buffer: i for i, cache in enumerate(caches)}
        self._layer: int | None = None  # of the latest call that showed its layer
        meta = {p.buffer for _, t in named if t is not None for p in (*t.parts, *t.meta)}
        self.fixed = frozenset(meta | self._tables.keys())

    def of(self, step: Step) -> list[Intermediate]:
        """The results of a call; empty if it belongs to the sampling."""
        if step.program.shader in SAMPLING:
            return []
        self._layer = None if step.program.shader == "embedding" else self._layer_of(step)
        kernel, a, d, got = CALLS[step.program.shader](self, step)
        expected = by_name(REGISTRY[kernel].reference(a, d))
        return [
            found
            for output, (name, values) in got.items()
            for found in self._compared(step, kernel, name, values, expected[output], a)
        ]

    def _layer_of(self, step: Step) -> int | None:
        """The layer of the weights or the cache that a call binds, or that of the call before."""
        for name, part in step.bindings.items():
            key = self._keys.get((part.buffer, part.offset))
            if part.buffer in self._caches:
                return self._caches[part.buffer]
            if key is not None and name != "norm_weight":  # that norm may belong to the next layer
                return key.layer
        return self._layer

    def _compared(
        self, step: Step, kernel: str, name: str, got: F64, expected: Expected, a: Arrays
    ) -> list[Intermediate]:
        pairs = [(name, got, expected)]
        if name == "cache":
            pairs = self._cache_parts(step, got, expected, a)
        tolerance, label = REGISTRY[kernel].tolerance, step.program.label
        errors = [relative_error(values, e) for _, values, e in pairs]
        return [
            Intermediate(p[0], self._layer, kernel, label, error, tolerance)
            for p, error in zip(pairs, errors, strict=True)
        ]

    def _cache_parts(self, step: Step, got: F64, expected: Expected, a: Arrays) -> list[tuple[str, F64, Expected]]:
        """k and v of the rows that a call wrote; all other places must keep their values."""
        c = self.config
        shape = (-1, 2, c.num_key_value_heads, PAGE, c.head_dim)
        page, place = address(a["pages"], a["rows"]) if "places" not in a else divmod(a["places"], PAGE)
        written = np.zeros(got.reshape(shape).shape, bool)
        written[page, :, :, place] = True
        old = step.before("kv", got.shape[1], dtype=self.kv).reshape(shape)
        pages = len(old)
        value = np.where(written, expected.value.reshape(shape)[:pages], old)
        scale = np.where(written, expected.scale.reshape(shape)[:pages], 0)
        return [
            (name, got.reshape(shape)[:, i], Expected(value[:, i], scale[:, i])) for i, name in enumerate(("k", "v"))
        ]

    # --- what calls bind -------------------------------------------------------------------

    def key(self, step: Step, binding: str) -> Key | None:
        """The model's tensor that a call binds."""
        part = step.bindings[binding]
        return self._keys.get((part.buffer, part.offset))

    def vector(self, step: Step, binding: str) -> npt.NDArray[np.float32]:
        """A vector of the model that a call binds."""
        key = self.key(step, binding)
        assert key is not None
        return vector_values(self._layout, self._layout.vectors[key])

    def name(self, step: Step, binding: str) -> str:
        """The name of what is made with a tensor of the model."""
        key = self.key(step, binding)
        return "" if key is None else _NAMES.get(key.role, key.role)

    def table(self, step: Step) -> npt.NDArray[np.float32]:
        """Cosines and sines."""
        return self._tables[step.bindings["cos_sin"].buffer]

    def weights(self, key: Key, first: int, count: int) -> Arrays:
        """Rows of a matrix as the cases of kernels have them: exact values, and the parts of quantized ones."""
        matrix = self._layout.matrices[key]
        if isinstance(matrix.format, Affine):
            stored = quantized_slice(self._layout, matrix, first, count)
            parts = dict(zip(("packed", "scales", "biases"), stored, strict=True))
            return {"w": dequantize_rows(stored, matrix.format)} | parts
        values = float_slice(self._layout, matrix, first, count)
        return {"w": widen_bf16(values) if matrix.format == "bf16" else values.astype(np.float32)}

    def looked_up(self, step: Step, rows: npt.NDArray[np.uint32], columns: int) -> tuple[Arrays, str]:
        """The rows of a table that a call reads, one for each of ``rows``, and their format."""
        key = self.key(step, "weights_data")
        if key is None:  # rows of the residual
            return {"w": step.before("weights_data", columns)[rows[:, 0].astype(np.int64)]}, "f32"
        each = [self.weights(key, int(token), 1) for token in rows[:, 0]]
        return {name: np.concatenate([a[name] for a in each]) for name in each[0]}, str(self.matrix(key).format)

    def matrix(self, key: Key) -> Matrix:
        """A matrix of the model."""
        return self._layout.matrices[key]
