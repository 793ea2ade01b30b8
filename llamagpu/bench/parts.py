"""The parts of a decoded token: the products with its weights, its attention, and the encoding of its step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from llamagpu.errors import OutOfMemoryError
from llamagpu.gpu import Device, Plan, Tensor, native
from llamagpu.gpu.timing import time_plans
from llamagpu.kernels.attention_paged import attention_decode, partial_shape, splits_for
from llamagpu.kernels.matmul import linear
from llamagpu.kernels.matvec import matvec
from llamagpu.model import Config, Model
from llamagpu.model.operations import scores_of
from llamagpu.model.step import Row
from llamagpu.model.weights import Weights


def weight_macs(config: Config) -> int:
    """Multiply-adds of a token with the weights: one for each weight of every product, the head's included."""
    c = config
    rows = (
        2 * (c.q_size + c.kv_size) + (3 if spec.gated else 2) * c.intermediate_size for spec in c.layers
    )  # of matrices whose other side is the hidden size
    return (sum(rows) + c.vocab_size) * c.hidden_size


def attention_macs(config: Config, positions: int) -> int:
    """Multiply-adds of a token's attention over some positions: scores and values."""
    return 2 * config.q_size * sum(spec.seen(positions) for spec in config.layers)


def kv_read_bytes(config: Config, positions: int, dtype: str) -> int:
    """Bytes of keys and values that a token's attention over some positions reads."""
    seen = sum(spec.seen(positions) for spec in config.layers)
    return 2 * config.kv_size * seen * (2 if dtype == "f16" else 4)


def weight_read_bytes(weights: Weights) -> int:
    """Bytes of weights that a token reads: every matrix once. The row of an untied embedding is left out."""
    matrices = [t for layer in weights.layers for t in (layer.qkv, layer.o, layer.gate_up, layer.down)]
    return sum(t.rows * t.row_bytes for t in (*matrices, weights.head))


@dataclass(frozen=True)
class Parts:
    """Seconds of a token's weight products as a bare chain in one pass, of its attention, and of encoding a step by raw
    calls and through wgpu-py's objects."""

    chain_s: float
    attention_s: float
    encode_s: float
    encode_objects_s: float


def chain(model: Model, rows: int, prompt: bool) -> Plan:
    """A plan of the model's products with nothing between them: of a prompt, or of a step, which includes the head."""
    device, c, weights = model.device, model.config, model.weights
    x = {k: device.tensor(np.ones((rows, k), np.float32)) for k in {c.hidden_size, c.q_size, c.intermediate_size}}
    layers = [(layer.qkv, layer.o, layer.gate_up, layer.down) for layer in weights.layers]
    out = {n: device.empty((rows, n)) for n in {w.rows for w in layers[0]} | (set() if prompt else {weights.head.rows})}

    def forward() -> None:
        for matrices in layers:
            for w in matrices:
                (linear if prompt else matvec)(x[w.columns], w, None, out[w.rows])
        if not prompt:
            matvec(x[c.hidden_size], weights.head, None, out[weights.head.rows])

    return device.record(forward, model.forward.tuning)


def attention_only(model: Model, positions: int, times: int) -> Plan:
    """A plan of the attention of all layers for one sequence of some positions, repeated ``times`` times."""
    device, c = model.device, model.config
    q = device.tensor(np.ones((1, c.q_size), np.float32))
    splits = splits_for(positions)
    partials = device.empty(partial_shape(1, c.num_attention_heads, c.head_dim, splits))
    rows = model.forward.state.rows.head(1)

    def forward() -> None:
        for cache, spec in list(zip(model.cache.layers, c.layers, strict=True)) * times:
            scores = scores_of(spec)
            runs = scores.splits(splits)
            shape = partial_shape(1, c.num_attention_heads, c.head_dim, runs)
            out = Tensor(device, shape, "f32", partials.parts)
            attention_decode(q, rows, cache, c.num_attention_heads, runs, out, scores)

    return device.record(forward, model.forward.tuning)


@contextmanager
def held_pages(model: Model, tokens: Sequence[int]) -> Iterator[list[int]]:
    """Slots of temporary sequences with pages for ``tokens`` tokens each; the contents of the pages are arbitrary.

    Raises:
        OutOfMemoryError: the cache has no room.
    """
    device, cache = model.device, model.cache
    taken = [device.call(partial(cache.take, n)) for n in tokens]
    try:
        if None in taken:
            raise OutOfMemoryError(f"The cache does not hold {sum(tokens)} tokens of {len(tokens)} sequences.")
        yield [pages.slot for pages in taken if pages is not None]
    finally:
        for pages in taken:
            if pages is not None:
                device.call(partial(cache.give, pages))


def measure_parts(model: Model, depth: int, repeat: int = 5) -> Parts:
    """Times of the parts of a step at a depth, measured in turns. Nothing else may run on the model meanwhile."""
    device, c, state = model.device, model.config, model.forward.state
    times = max(1, min(16, weight_macs(c) // attention_macs(c, depth + 1)))  # to hide submission
    with device.ledger.tracking() as made:
        plans = {
            "chain": chain(model, 1, prompt=False),
            "attention": attention_only(model, depth + 1, times),
        }
    with held_pages(model, [depth + 1]) as (slot,):
        before = partial(device.call, lambda: state.write_rows([Row(1, depth, slot)], 1))
        seconds = time_plans(device, plans, repeat, before=before)
    for plan in plans.values():
        plan.free()
    for buffer in made:
        device.free(buffer)
    step = device.call(lambda: model.forward.decode(1, depth + 1, True))
    raw, objects = (encode_seconds(device, step, way) for way in (True, False))
    return Parts(seconds["chain"], seconds["attention"] / times, raw, objects)


def encode_seconds(device: Device, plan: Plan, raw: bool, repeat: int = 20) -> float:
    """The shortest time of encoding a plan's dispatches into a pass, which is not submitted."""

    def measure() -> float:
        before, native.use_raw_pass = native.use_raw_pass, raw
        try:
            best = float("inf")
            for _ in range(repeat):
                compute = device.memory.encoder().begin_compute_pass()
                start = time.perf_counter()
                plan.encode(compute)
                best = min(best, time.perf_counter() - start)
                compute.end()
            return best
        finally:
            native.use_raw_pass = before

    return device.call(measure)
