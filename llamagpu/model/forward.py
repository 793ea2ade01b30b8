"""The decoder's forward pass: plain calls of kernel wrappers, recorded once for a shape and replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llamagpu.gpu import Device, Plan, Tensor
from llamagpu.kernels import Sampler, choose, embedding, make_sampler, sampler_columns, splits_for
from llamagpu.model.cache import SLOTS, PagedCache
from llamagpu.model.config import Config
from llamagpu.model.layers import Fused, Layers, Unfused, columns
from llamagpu.model.weights import Weights

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
    """The buffers that plans work on, for at most ``rows`` rows; every plan uses their first rows."""

    step_rows: Tensor  # u32 [rows, 4] token, position, slot, place
    activations: dict[str, Tensor]  # f32 [rows, …], see ``layers.columns``
    partials: Tensor  # [partial_rows, heads · (head_dim + 4)] runs of decode attention
    picks: Tensor  # u32 [HEAD_ROWS, 4] which rows of x the head reads
    picked: Tensor  # [HEAD_ROWS, hidden]
    logits: Tensor  # [HEAD_ROWS, vocab]
    sampler: Sampler


def arena_bytes(config: Config, rows: int, context: int, fused: bool) -> int:
    """Bytes that ``make_arena`` will take, to within its padding."""
    c = config
    partials = partial_rows(context) * c.num_attention_heads * (c.head_dim + 4)
    head = HEAD_ROWS * (c.hidden_size + c.vocab_size + sum(sampler_columns(c.vocab_size).values()))
    slots = 2 * (SLOTS + 1) * c.vocab_size
    return 4 * (rows * (sum(columns(c, fused).values()) + 4) + partials + head + slots)


def make_arena(device: Device, config: Config, rows: int, context: int, fused: bool) -> Arena:
    """Allocate the buffers."""
    c = config

    def floats(n: int, columns: int) -> Tensor:
        return device.empty((n, columns), purpose="activations")

    return Arena(
        step_rows=device.empty((rows, 4), "u32", purpose="activations"),
        activations={name: floats(rows, n) for name, n in columns(c, fused).items()},
        partials=floats(partial_rows(context), c.num_attention_heads * (c.head_dim + 4)),
        picks=device.empty((HEAD_ROWS, 4), "u32", purpose="activations"),
        picked=floats(HEAD_ROWS, c.hidden_size),
        logits=floats(HEAD_ROWS, c.vocab_size),
        sampler=make_sampler(device, HEAD_ROWS, SLOTS + 1, c.vocab_size),
    )


class Forward:
    """Plans over one model's weights, cache and activations, recorded when they are first needed."""

    def __init__(
        self, config: Config, weights: Weights, cache: PagedCache, turns: Tensor, arena: Arena, fused: bool = True
    ):
        self.arena = arena
        self.device: Device = turns.device
        self._plans: dict[tuple[object, ...], Plan] = {}
        form = Fused if fused else Unfused
        self._layers: Layers = form(config, weights, cache, turns, arena.step_rows, arena.partials, arena.activations)

    def prefill(self, rows: int) -> Plan:
        """Layers over ``rows`` (a bucket) consecutive positions of one sequence; the residual stream ends in x."""
        return self._plan(("prefill", rows), lambda: self._layers.prompt(rows))

    def head(self, rows: int) -> Plan:
        """Logits of the rows of x that ``picks`` names."""
        return self._plan(("head", rows), lambda: self._head(rows))

    def first(self, plain: bool) -> Plan:
        """Logits of the picked row, and the token that follows it."""
        return self._plan(("first", plain), lambda: self._sample(self._head(1), plain))

    def decode(self, batch: int, positions: int, plain: bool) -> Plan:
        """One token for each of ``batch`` sequences of up to ``positions`` positions: from the state in ``step_rows``
        to the state of the next step. ``plain`` leaves out what only penalties and filters need."""
        splits = split_bucket(positions)

        def step() -> None:
            logits = self.arena.logits.head(batch)
            self._layers.step(batch, splits, logits)
            self._sample(logits, plain)

        return self._plan(("decode", batch, splits, plain), step)

    def free(self) -> None:
        """Give back what the plans hold."""
        for plan in self._plans.values():
            plan.free()
        self._plans.clear()

    def _plan(self, key: tuple[object, ...], forward: Callable[[], object]) -> Plan:
        if key not in self._plans:
            self._plans[key] = self.device.record(forward)
        return self._plans[key]

    def _head(self, rows: int) -> Tensor:
        a, logits = self.arena, self.arena.logits.head(rows)
        self._layers.head(embedding(a.activations["x"], a.picks.head(rows), a.picked.head(rows)), logits)
        return logits

    def _sample(self, logits: Tensor, plain: bool) -> Tensor:
        a = self.arena
        return choose(logits, a.step_rows.head(logits.rows), a.sampler.head(logits.rows), plain)
