"""The decoder's forward pass: plain calls of kernel wrappers, recorded once for a shape and replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llamagpu.gpu import Device, Plan, Tensor
from llamagpu.kernels import (
    Sampler,
    add,
    attention_decode,
    attention_merge,
    attention_prefill,
    choose,
    embedding,
    kv_write,
    linear,
    make_sampler,
    matvec,
    partial_shape,
    rms_norm,
    rope,
    sampler_columns,
    silu_mul,
    splits_for,
)
from llamagpu.model.cache import SLOTS, PagedCache
from llamagpu.model.config import Config
from llamagpu.model.weights import Layer, Weights

# Rows that a prefill plan takes; a chunk is padded up to the next one.
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
BATCHES = (1, 2, 4, 8, 16, 32)  # rows that a decode plan takes
HEAD_ROWS = BATCHES[-1]  # rows whose logits are computed at once
_PARTIAL_RUNS = 16  # attention runs that a full batch has room for; longer sequences decode in smaller batches


def bucket(rows: int, sizes: tuple[int, ...] = ROW_BUCKETS) -> int:
    """The smallest plan that takes so many rows."""
    return next(b for b in sizes if b >= rows)


def split_bucket(positions: int) -> int:
    """Attention runs in the grid for so many positions: a power of two, so that few plans serve all lengths."""
    return 1 << (splits_for(positions) - 1).bit_length()


def partial_rows(context: int) -> int:
    """Rows × runs that the partial results of decode attention have room for."""
    return max(split_bucket(context), BATCHES[-1] * min(_PARTIAL_RUNS, split_bucket(context)))


def batch_limit(context: int, positions: int) -> int:
    """Sequences of so many positions that decode together at most."""
    return min(BATCHES[-1], partial_rows(context) // split_bucket(positions))


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
    partials: Tensor  # [partial_rows, heads · (head_dim + 4)] runs of decode attention
    picks: Tensor  # u32 [HEAD_ROWS, 4] which rows of x the head reads
    picked: Tensor  # [HEAD_ROWS, hidden]
    logits: Tensor  # [HEAD_ROWS, vocab]
    sampler: Sampler


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
    partials = partial_rows(context) * c.num_attention_heads * (c.head_dim + 4)
    head = HEAD_ROWS * (c.hidden_size + c.vocab_size + sum(sampler_columns(c.vocab_size).values()))
    slots = 2 * (SLOTS + 1) * c.vocab_size
    return 4 * (rows * (sum(arena_columns(c).values()) + 4) + partials + head + slots)


def make_arena(device: Device, config: Config, rows: int, context: int) -> Arena:
    """Allocate the activations."""
    c = config

    def floats(n: int, columns: int) -> Tensor:
        return device.empty((n, columns), purpose="activations")

    return Arena(
        **{name: floats(rows, columns) for name, columns in arena_columns(c).items()},
        step_rows=device.empty((rows, 4), "u32", purpose="activations"),
        partials=floats(partial_rows(context), c.num_attention_heads * (c.head_dim + 4)),
        picks=device.empty((HEAD_ROWS, 4), "u32", purpose="activations"),
        picked=floats(HEAD_ROWS, c.hidden_size),
        logits=floats(HEAD_ROWS, c.vocab_size),
        sampler=make_sampler(device, HEAD_ROWS, SLOTS + 1, c.vocab_size),
    )


class Forward:
    """Plans over one model's weights, cache and activations, recorded when they are first needed."""

    def __init__(self, config: Config, weights: Weights, cache: PagedCache, turns: Tensor, arena: Arena):
        self.config, self.weights, self.cache, self.turns, self.arena = config, weights, cache, turns, arena
        self._device: Device = turns.device
        self._plans: dict[tuple[object, ...], Plan] = {}

    def prefill(self, rows: int) -> Plan:
        """Layers over ``rows`` (a bucket) consecutive positions of one sequence; the residual stream ends in x."""
        return self._plan(("prefill", rows), lambda: self._layers(rows, None))

    def head(self, rows: int) -> Plan:
        """Logits of the rows of x that ``picks`` names."""
        return self._plan(("head", rows), lambda: self._head(rows, self._pick(rows), linear))

    def first(self, plain: bool) -> Plan:
        """Logits of the picked row, and the token that follows it."""
        return self._plan(("first", plain), lambda: self._sample(self._head(1, self._pick(1)), plain))

    def decode(self, batch: int, positions: int, plain: bool) -> Plan:
        """One token for each of ``batch`` sequences of up to ``positions`` positions: from the state in ``step_rows``
        to the state of the next step. ``plain`` leaves out what only penalties and filters need."""
        splits = split_bucket(positions)

        def step() -> None:
            self._layers(batch, splits)
            self._sample(self._head(batch, self.arena.x.head(batch)), plain)

        return self._plan(("decode", batch, splits, plain), step)

    def free(self) -> None:
        """Give back what the plans hold."""
        for plan in self._plans.values():
            plan.free()
        self._plans.clear()

    def _plan(self, key: tuple[object, ...], forward: Callable[[], object]) -> Plan:
        if key not in self._plans:
            self._plans[key] = self._device.record(forward)
        return self._plans[key]

    def _layers(self, rows: int, splits: int | None) -> None:
        """All layers: over a prompt (``splits`` None), or over one position each of several sequences."""
        a = self.arena
        embedding(self.weights.embed, a.step_rows.head(rows), a.x.head(rows))
        for index, layer in enumerate(self.weights.layers):
            self._attention(rows, splits, index, layer)
            self._mlp(rows, splits, layer)

    def _attention(self, rows: int, splits: int | None, index: int, layer: Layer) -> None:
        """y = x + o(attention(norm(x)))"""
        c, a, cache = self.config, self.arena, self.cache.layers[index]
        x, y, qkv, state = a.x.head(rows), a.y.head(rows), a.qkv.head(rows), a.step_rows.head(rows)
        heads, attended = c.num_attention_heads, a.attended.head(rows)
        product = _product(splits)
        normed = rms_norm(x, layer.attn_norm, c.rms_norm_eps, a.normed.head(rows))
        product(normed, layer.qkv, layer.qkv_bias, qkv)
        rope(qkv, state, self.turns, heads + c.num_key_value_heads)
        kv_write(qkv, state, cache, first=c.q_size)
        if splits is None:
            attention_prefill(qkv, state, cache, heads, attended)
        else:
            shape = partial_shape(rows, heads, c.head_dim, splits)
            partials = Tensor(a.partials.device, shape, "f32", (a.partials.part,))
            attention_decode(qkv, state, cache, heads, splits, partials)
            attention_merge(partials, state, heads, c.head_dim, splits, attended)
        add(x, product(attended, layer.o, layer.o_bias, a.projected.head(rows)), y)

    def _mlp(self, rows: int, splits: int | None, layer: Layer) -> None:
        """x = y + down(silu(gate(norm(y))) · up(norm(y)))"""
        a, product = self.arena, _product(splits)
        x, y = a.x.head(rows), a.y.head(rows)
        normed = rms_norm(y, layer.mlp_norm, self.config.rms_norm_eps, a.normed.head(rows))
        gate_up = product(normed, layer.gate_up, layer.gate_up_bias, a.gate_up.head(rows))
        gated = silu_mul(gate_up, a.gated.head(rows))
        add(y, product(gated, layer.down, layer.down_bias, a.projected.head(rows)), x)

    def _pick(self, rows: int) -> Tensor:
        a = self.arena
        return embedding(a.x, a.picks.head(rows), a.picked.head(rows))

    def _head(self, rows: int, x: Tensor, product: Callable[..., Tensor] = matvec) -> Tensor:
        """Logits of rows of the residual stream: f32 [rows, vocab]."""
        a = self.arena
        normed = rms_norm(x, self.weights.norm, self.config.rms_norm_eps, a.normed.head(rows))
        return product(normed, self.weights.head, None, a.logits.head(rows))

    def _sample(self, logits: Tensor, plain: bool) -> Tensor:
        a = self.arena
        return choose(logits, a.step_rows.head(logits.rows), a.sampler.head(logits.rows), plain)


def _product(splits: int | None) -> Callable[..., Tensor]:
    """Decode multiplies by ``matvec`` in every batch, so that a sequence has the same bits alone and in company."""
    return linear if splits is None else matvec
