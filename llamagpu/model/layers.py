"""What is between token ids and logits, in two forms: by plain steps, and fused into five dispatches a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llamagpu.gpu import Tensor
from llamagpu.kernels import (
    add,
    add_norm,
    add_to,
    attention_decode,
    attention_merge,
    attention_prefill,
    begin_step,
    embedding,
    kv_write,
    linear,
    matvec,
    merged,
    normed,
    partial_shape,
    plain,
    product,
    qkv,
    rms_norm,
    rope,
    silu_mul,
    store,
    stream_columns,
    swiglu,
)
from llamagpu.kernels.product import MAX_COLUMNS, MERGED_RUNS
from llamagpu.model.cache import PagedCache
from llamagpu.model.config import Config
from llamagpu.model.weights import Layer, Weights


class Layers(Protocol):
    """A form of the decoder. The activations are its own; ``x`` is the residual stream, f32 [rows, hidden]."""

    def prompt(self, rows: int) -> None:
        """All layers over ``rows`` consecutive positions of one sequence; the residual stream ends in x."""

    def step(self, rows: int, splits: int, logits: Tensor) -> None:
        """All layers and the head over one position each of ``rows`` sequences of up to ``splits`` runs."""

    def head(self, x: Tensor, logits: Tensor) -> None:
        """Logits of rows of the residual stream."""


def columns(config: Config, fused: bool) -> dict[str, int]:
    """Float columns of each activation."""
    c = config
    common = {"x": c.hidden_size, "normed": c.hidden_size, "attended": c.q_size, "gated": c.intermediate_size}
    if fused:
        return common | {"stream": stream_columns(c.hidden_size), "q": c.q_size}
    hidden = {"y": c.hidden_size, "projected": c.hidden_size}
    return common | hidden | {"qkv": c.q_size + 2 * c.kv_size, "gate_up": 2 * c.intermediate_size}


class _Form:
    def __init__(
        self,
        config: Config,
        weights: Weights,
        cache: PagedCache,
        turns: Tensor,
        rows: Tensor,
        partials: Tensor,
        activations: dict[str, Tensor],
    ):
        self.config, self.weights, self.cache, self.turns = config, weights, cache, turns
        self.rows, self._partials, self._activations = rows, partials, activations

    def _take(self, rows: int, *names: str) -> tuple[Tensor, ...]:
        return tuple(self._activations[name].head(rows) for name in names)

    def _partial(self, rows: int, splits: int) -> Tensor:
        shape = partial_shape(rows, self.config.num_attention_heads, self.config.head_dim, splits)
        return Tensor(self._partials.device, shape, "f32", (self._partials.part,))

    def head(self, x: Tensor, logits: Tensor) -> None:
        (normed_x,) = self._take(x.rows, "normed")
        linear(rms_norm(x, self.weights.norm, self.config.rms_norm_eps, normed_x), self.weights.head, None, logits)


class Unfused(_Form):
    """A kernel for every step of the formula: the readable form, and the oracle of the other."""

    def prompt(self, rows: int) -> None:
        self._layers(rows, None)

    def step(self, rows: int, splits: int, logits: Tensor) -> None:
        self._layers(rows, splits)
        x, normed_x = self._take(rows, "x", "normed")
        matvec(rms_norm(x, self.weights.norm, self.config.rms_norm_eps, normed_x), self.weights.head, None, logits)

    def _layers(self, rows: int, splits: int | None) -> None:
        # Decode multiplies by matvec in every batch, so that a sequence has the same bits alone and in company.
        multiply = linear if splits is None else matvec
        embedding(self.weights.embed, self.rows.head(rows), *self._take(rows, "x"))
        for index, layer in enumerate(self.weights.layers):
            self._attention(rows, splits, index, layer, multiply)
            self._mlp(rows, layer, multiply)

    def _attention(
        self, rows: int, splits: int | None, index: int, layer: Layer, multiply: Callable[..., Tensor]
    ) -> None:
        """y = x + o(attention(norm(x)))"""
        c, cache, state = self.config, self.cache.layers[index], self.rows.head(rows)
        x, y, out, attended, projected = self._take(rows, "x", "y", "qkv", "attended", "projected")
        heads = c.num_attention_heads
        normed_x = rms_norm(x, layer.attn_norm, c.rms_norm_eps, *self._take(rows, "normed"))
        multiply(normed_x, layer.qkv, layer.qkv_bias, out)
        rope(out, state, self.turns, heads + c.num_key_value_heads)
        kv_write(out, state, cache, first=c.q_size)
        if splits is None:
            attention_prefill(out, state, cache, heads, attended)
        else:
            partials = self._partial(rows, splits)
            attention_decode(out, state, cache, heads, splits, partials)
            attended = partials
            if splits > 1:
                attended = attention_merge(partials, state, heads, c.head_dim, splits, *self._take(rows, "attended"))
        add(x, multiply(attended, layer.o, layer.o_bias, projected), y)

    def _mlp(self, rows: int, layer: Layer, multiply: Callable[..., Tensor]) -> None:
        """x = y + down(silu(gate(norm(y))) · up(norm(y)))"""
        x, y, gate_up, gated, projected = self._take(rows, "x", "y", "gate_up", "gated", "projected")
        normed_y = rms_norm(y, layer.mlp_norm, self.config.rms_norm_eps, *self._take(rows, "normed"))
        multiply(normed_y, layer.gate_up, layer.gate_up_bias, gate_up)
        silu_mul(gate_up, gated)
        add(y, multiply(gated, layer.down, layer.down_bias, projected), x)


class Fused(_Form):
    """Norms, rotary embedding, cache writes, SwiGLU and residual additions inside the products beside them.

    A step leaves for every norm the sum of squares where it is made, and the reader scales its products. Over a prompt
    the norms are passes of their own, where they take two hundredths of the time.
    """

    def prompt(self, rows: int) -> None:
        c, w, many = self.config, self.weights, rows > MAX_COLUMNS
        state = self.rows.head(rows)
        x, stream, normed_x, q, attended, gated = self._take(rows, "x", "stream", "normed", "q", "attended", "gated")
        heads = c.num_attention_heads
        begin_step(w.embed, state, self.cache.table, w.layers[0].attn_norm, x, stream)
        for layer, cache in zip(w.layers, self.cache.layers, strict=True):
            rms_norm(x, layer.attn_norm, c.rms_norm_eps, normed_x)
            product(plain(normed_x), layer.qkv, layer.qkv_bias, qkv(q, state, self.turns, cache, heads), many)
            attention_prefill(q, state, cache, heads, attended)
            product(plain(attended), layer.o, layer.o_bias, add_to(x), many)
            rms_norm(x, layer.mlp_norm, c.rms_norm_eps, normed_x)
            product(plain(normed_x), layer.gate_up, layer.gate_up_bias, swiglu(gated), many)
            product(plain(gated), layer.down, layer.down_bias, add_to(x), many)

    def step(self, rows: int, splits: int, logits: Tensor) -> None:
        c, w, state = self.config, self.weights, self.rows.head(rows)
        x, stream, q, attended, gated = self._take(rows, "x", "stream", "q", "attended", "gated")
        heads, partials = c.num_attention_heads, self._partial(rows, splits)
        merged_runs = min(MERGED_RUNS, x.device.tuning.merged_runs)
        norms = [layer.attn_norm for layer in w.layers[1:]] + [w.norm]
        ready = normed(stream, c.hidden_size, c.rms_norm_eps)
        begin_step(w.embed, state, self.cache.table, w.layers[0].attn_norm, x, stream)
        for layer, cache, next_norm in zip(w.layers, self.cache.layers, norms, strict=True):
            product(ready, layer.qkv, layer.qkv_bias, qkv(q, state, self.turns, cache, heads))
            attention_decode(q, state, cache, heads, splits, partials)
            if splits == 1:
                source = plain(partials)
            elif splits <= merged_runs and rows == 1:  # several rows would each be merged many times over
                source = merged(partials, state, heads, c.head_dim, splits)
            else:
                source = plain(attention_merge(partials, state, heads, c.head_dim, splits, attended))
            product(source, layer.o, layer.o_bias, add_norm(x, stream, layer.mlp_norm))
            product(ready, layer.gate_up, layer.gate_up_bias, swiglu(gated))
            product(plain(gated), layer.down, layer.down_bias, add_norm(x, stream, next_norm))
        product(ready, w.head, None, store(logits))
