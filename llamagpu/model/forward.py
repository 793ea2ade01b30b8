"""The decoder's forward pass: plain calls of kernel wrappers, recorded once for a shape and replayed."""

from __future__ import annotations

from dataclasses import dataclass

from llamagpu.gpu import Device, Plan, Tensor
from llamagpu.kernels import (
    add,
    attention_decode,
    attention_merge,
    attention_prefill,
    chunks_for,
    embedding,
    kv_write,
    linear,
    partial_shape,
    rms_norm,
    rope,
    sample,
    silu_mul,
    splits_for,
)
from llamagpu.model.cache import PagedCache
from llamagpu.model.config import Config
from llamagpu.model.weights import Layer, Weights

# Rows that a prefill plan takes; a chunk is padded up to the next one.
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
HEAD_ROWS = 32  # rows whose logits are computed at once


def bucket(rows: int) -> int:
    """The smallest plan that takes so many rows."""
    return next(b for b in ROW_BUCKETS if b >= rows)


@dataclass
class Arena:
    """The activations, for at most ``rows`` rows; every plan uses their first rows."""

    step_rows: Tensor  # u32 [rows, 4] token, position, slot, 0
    x: Tensor  # f32 [rows, hidden]: the residual stream, and its other buffer
    y: Tensor
    normed: Tensor  # [rows, hidden]
    qkv: Tensor  # [rows, q + 2 kv]
    attended: Tensor  # [rows, q]
    gate_up: Tensor  # [rows, 2 · intermediate]
    gated: Tensor  # [rows, intermediate]
    projected: Tensor  # [rows, hidden]
    partials: Tensor  # [1, …] runs of decode attention
    picks: Tensor  # u32 [HEAD_ROWS, 4] which rows of x the head reads
    picked: Tensor  # [HEAD_ROWS, hidden]
    logits: Tensor  # [HEAD_ROWS, vocab]
    settings: Tensor  # u32 [1, 4] seed and temperature
    best: Tensor  # u32 [1, …] scratch of sampling
    result: Tensor  # u32 [1, 4] token, not-finite flag


def arena_columns(config: Config) -> dict[str, int]:
    """Float columns of each activation."""
    c = config
    hidden = dict.fromkeys(("x", "y", "normed", "projected"), c.hidden_size)
    return hidden | {
        "qkv": c.q_size + 2 * c.kv_size,
        "attended": c.q_size,
        "gate_up": 2 * c.intermediate_size,
        "gated": c.intermediate_size,
    }


def arena_bytes(config: Config, rows: int, context: int) -> int:
    """Bytes that ``make_arena`` will take, to within its padding."""
    c = config
    partials = c.num_attention_heads * splits_for(context) * (c.head_dim + 4)
    head = HEAD_ROWS * (c.hidden_size + c.vocab_size)
    return 4 * (rows * (sum(arena_columns(c).values()) + 4) + 2 * partials + head)


def make_arena(device: Device, config: Config, rows: int, context: int) -> Arena:
    """Allocate the activations."""
    c, vocab_chunks = config, chunks_for(config.vocab_size)

    def floats(n: int, columns: int) -> Tensor:
        return device.empty((n, columns), purpose="activations")

    def words(n: int, columns: int) -> Tensor:
        return device.empty((n, columns), "u32", purpose="activations")

    splits = split_bucket(context)
    return Arena(
        **{name: floats(rows, columns) for name, columns in arena_columns(c).items()},
        step_rows=words(rows, 4),
        partials=floats(*partial_shape(1, c.num_attention_heads, c.head_dim, splits)),
        picks=words(HEAD_ROWS, 4),
        picked=floats(HEAD_ROWS, c.hidden_size),
        logits=floats(HEAD_ROWS, c.vocab_size),
        settings=words(1, 4),
        best=words(1, 4 * vocab_chunks),
        result=words(1, 4),
    )


def split_bucket(positions: int) -> int:
    """Attention runs in the grid for so many positions: a power of two, so that few plans serve all lengths."""
    return 1 << (splits_for(positions) - 1).bit_length()


class Forward:
    """Plans over one model's weights, cache and activations, recorded when they are first needed."""

    def __init__(self, config: Config, weights: Weights, cache: PagedCache, turns: Tensor, arena: Arena):
        self.config, self.weights, self.cache, self.turns, self.arena = config, weights, cache, turns, arena
        self._device: Device = turns.device
        self._plans: dict[tuple[str, int], Plan] = {}

    def prefill(self, rows: int) -> Plan:
        """Layers over ``rows`` (a bucket) consecutive positions of one sequence; the residual stream ends in x."""
        return self._plan("prefill", rows, lambda: self._layers(rows, None))

    def head(self, rows: int) -> Plan:
        """Logits of the rows of x that ``picks`` names."""
        return self._plan("head", rows, lambda: self._head(rows, self._pick(rows)))

    def first(self) -> Plan:
        """Logits of the picked row, and the token that follows it."""
        return self._plan("first", 1, lambda: self._sample(self._head(1, self._pick(1))))

    def decode(self, positions: int) -> Plan:
        """One token: from the state in ``step_rows`` to the state of the next step, for sequences of up to
        ``positions`` positions."""
        splits = split_bucket(positions)
        a = self.arena

        def step() -> None:
            self._layers(1, splits)
            self._sample(self._head(1, a.x.head(1)))

        return self._plan("decode", splits, step)

    def free(self) -> None:
        """Give back what the plans hold."""
        for plan in self._plans.values():
            plan.free()
        self._plans.clear()

    def _plan(self, kind: str, size: int, forward) -> Plan:  # type: ignore[no-untyped-def]
        key = (kind, size)
        if key not in self._plans:
            self._plans[key] = self._device.record(forward)
        return self._plans[key]

    def _layers(self, rows: int, splits: int | None) -> None:
        a = self.arena
        embedding(self.weights.embed, a.step_rows.head(rows), a.x.head(rows))
        for index, layer in enumerate(self.weights.layers):
            self._attention(rows, splits, index, layer)
            self._mlp(rows, layer)

    def _attention(self, rows: int, splits: int | None, index: int, layer: Layer) -> None:
        """y = x + o(attention(norm(x)))"""
        c, a, cache = self.config, self.arena, self.cache.layers[index]
        x, y, qkv, state = a.x.head(rows), a.y.head(rows), a.qkv.head(rows), a.step_rows.head(rows)
        heads, attended = c.num_attention_heads, a.attended.head(rows)
        normed = rms_norm(x, layer.attn_norm, c.rms_norm_eps, a.normed.head(rows))
        linear(normed, layer.qkv, layer.qkv_bias, qkv)
        rope(qkv, state, self.turns, heads + c.num_key_value_heads)
        kv_write(qkv, state, cache, first=c.q_size)
        if splits is None:
            attention_prefill(qkv, state, cache, heads, attended)
        else:
            shape = partial_shape(1, heads, c.head_dim, splits)
            partials = Tensor(a.partials.device, shape, "f32", (a.partials.part,))
            attention_decode(qkv, state, cache, heads, splits, partials)
            attention_merge(partials, state, heads, c.head_dim, splits, attended)
        add(x, linear(attended, layer.o, layer.o_bias, a.projected.head(rows)), y)

    def _mlp(self, rows: int, layer: Layer) -> None:
        """x = y + down(silu(gate(norm(y))) · up(norm(y)))"""
        a = self.arena
        x, y = a.x.head(rows), a.y.head(rows)
        normed = rms_norm(y, layer.mlp_norm, self.config.rms_norm_eps, a.normed.head(rows))
        gate_up = linear(normed, layer.gate_up, layer.gate_up_bias, a.gate_up.head(rows))
        gated = silu_mul(gate_up, a.gated.head(rows))
        add(y, linear(gated, layer.down, layer.down_bias, a.projected.head(rows)), x)

    def _pick(self, rows: int) -> Tensor:
        a = self.arena
        return embedding(a.x, a.picks.head(rows), a.picked.head(rows))

    def _head(self, rows: int, x: Tensor) -> Tensor:
        """Logits of rows of the residual stream: f32 [rows, vocab]."""
        a = self.arena
        normed = rms_norm(x, self.weights.norm, self.config.rms_norm_eps, a.normed.head(rows))
        return linear(normed, self.weights.head, None, a.logits.head(rows))

    def _sample(self, logits: Tensor) -> Tensor:
        a = self.arena
        return sample(logits, a.settings, a.best, a.step_rows.head(1), a.result)
