"""The decoder, stated once over sets of operations (``operations``): fused or unfused, for prompts or decode steps."""

from __future__ import annotations

from typing import Protocol, TypeVar

from llamagpu.gpu import Tensor
from llamagpu.kernels.kv_write import Cache
from llamagpu.model.weights import Layer, Weights

V = TypeVar("V")


class Operations(Protocol[V]):
    """The operations of a decoder. V is the type in which one operation passes vectors to the next.

    The operations hold the residual x. ``next_norm`` is the weight of the norm that reads x next, so that the operation
    that writes x can prepare that norm.
    """

    def embed(self, table: Tensor, next_norm: Tensor) -> None:
        """x = table[token] for every row."""

    def norm(self, weight: Tensor) -> V:
        """RMSNorm of x."""

    def qkv(self, normed: V, w: Tensor, bias: Tensor | None, cache: Cache) -> V:
        """Project to q, k and v, rotate q and k, write k and v to the cache; q."""

    def attention(self, q: V, cache: Cache) -> V:
        """Causal attention over the cache."""

    def gated(self, normed: V, w: Tensor, bias: Tensor | None) -> V:
        """silu(gate) · up of the two projections in w."""

    def add(self, value: V, w: Tensor, bias: Tensor | None, next_norm: Tensor) -> None:
        """x += value Wᵀ + bias."""

    def logits(self, normed: V, head: Tensor, out: Tensor) -> None:
        """Scores of all tokens, for every row."""


def decoder_layer(ops: Operations[V], layer: Layer, cache: Cache, next_norm: Tensor) -> None:
    """x += o(attention(norm(x))), then x += down(silu(gate(norm(x))) · up(norm(x)))."""
    normed = ops.norm(layer.attn_norm)
    q = ops.qkv(normed, layer.qkv, layer.qkv_bias, cache)
    attended = ops.attention(q, cache)
    ops.add(attended, layer.o, layer.o_bias, next_norm=layer.mlp_norm)
    normed = ops.norm(layer.mlp_norm)
    gated = ops.gated(normed, layer.gate_up, layer.gate_up_bias)
    ops.add(gated, layer.down, layer.down_bias, next_norm=next_norm)


def decoder_layers(ops: Operations[V], weights: Weights, caches: list[Cache]) -> None:
    """The embedding and all layers; x is ready for the final norm."""
    norms = [layer.attn_norm for layer in weights.layers] + [weights.norm]
    ops.embed(weights.embed, next_norm=norms[0])
    for layer, cache, next_norm in zip(weights.layers, caches, norms[1:], strict=True):
        decoder_layer(ops, layer, cache, next_norm)


def decoder_head(ops: Operations[V], weights: Weights, out: Tensor) -> None:
    """Logits from x, f32 [rows, vocab]."""
    ops.logits(ops.norm(weights.norm), weights.head, out)
