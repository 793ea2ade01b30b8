"""The decoder, stated once over sets of operations (``operations``): fused or unfused, for prompts or decode steps."""

from __future__ import annotations

from typing import Protocol, TypeVar

from llamagpu.gpu import Tensor
from llamagpu.kernels.kv_write import Cache
from llamagpu.model.architecture import LayerSpec
from llamagpu.model.weights import Layer, Weights

V = TypeVar("V")


class Operations(Protocol[V]):
    """The operations of a decoder. V is the type in which one operation passes vectors to the next.

    The operations hold the residual x. ``next_norm`` is the weight of the norm that reads x next, or None, so that the
    operation that writes x can prepare that norm.
    """

    def embed(self, table: Tensor, norm: Tensor | None, next_norm: Tensor | None) -> None:
        """x = table[token] for every row, scaled; then normalized, if a norm's weight is given."""

    def norm(self, weight: Tensor | None) -> V:
        """RMSNorm of x; without a weight, x itself."""

    def qkv(self, value: V, layer: Layer, spec: LayerSpec, cache: Cache) -> V:
        """Project to q, k and v, normalize q and k if the spec says so, rotate them, write k and v to the cache; q."""

    def attention(self, q: V, spec: LayerSpec, cache: Cache) -> V:
        """Causal attention over the cache, within the layer's window."""

    def mlp(self, value: V, layer: Layer, spec: LayerSpec) -> V:
        """activation(gate) · up, or activation(up) without a gate."""

    def add(
        self,
        value: V,
        w: Tensor,
        bias: Tensor | None,
        spec: LayerSpec,
        out_norm: Tensor | None,
        next_norm: Tensor | None,
    ) -> None:
        """x += value Wᵀ + bias, scaled as the spec says, and normalized if a norm's weight is given."""

    def logits(self, value: V, head: Tensor, out: Tensor) -> None:
        """Scores of all tokens, for every row."""


def decoder_layer(ops: Operations[V], layer: Layer, spec: LayerSpec, cache: Cache, next_norm: Tensor | None) -> None:
    """x += o(attention(norm(x))), then x += down(activation(gate(norm(x))) · up(norm(x)))."""
    q = ops.qkv(ops.norm(layer.attn_norm), layer, spec, cache)
    attended = ops.attention(q, spec, cache)
    ops.add(attended, layer.o, layer.o_bias, spec, layer.attn_post_norm, layer.mlp_norm)
    inner = ops.mlp(ops.norm(layer.mlp_norm), layer, spec)
    ops.add(inner, layer.down, layer.down_bias, spec, layer.mlp_post_norm, next_norm)


def decoder_layers(ops: Operations[V], weights: Weights, specs: tuple[LayerSpec, ...], caches: list[Cache]) -> None:
    """The embedding and all layers; x is ready for the final norm."""
    norms = [layer.attn_norm for layer in weights.layers] + [weights.norm]
    ops.embed(weights.embed, weights.embed_norm, norms[0])
    for layer, spec, cache, next_norm in zip(weights.layers, specs, caches, norms[1:], strict=True):
        decoder_layer(ops, layer, spec, cache, next_norm)


def decoder_head(ops: Operations[V], weights: Weights, out: Tensor) -> None:
    """Logits from x, f32 [rows, vocab]."""
    ops.logits(ops.norm(weights.norm), weights.head, out)
