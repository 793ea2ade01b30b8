"""What a decoded token is made of: its weights' products alone, its attention alone, and the encoding of its step."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from llamagpu.gpu import Device, Plan, native
from llamagpu.gpu.timing import time_plans
from llamagpu.kernels import attention_decode, linear, matvec, partial_shape, splits_for, step_rows
from llamagpu.model import Config, Model
from llamagpu.model.weights import Weights


def weight_macs(config: Config) -> int:
    """Multiply-adds of a token with the weights: one for each weight of every product, the head's included."""
    c = config
    layer = (
        (c.q_size + 2 * c.kv_size) * c.hidden_size + c.q_size * c.hidden_size + 3 * c.intermediate_size * c.hidden_size
    )
    return c.num_hidden_layers * layer + c.vocab_size * c.hidden_size


def attention_macs(config: Config, positions: int) -> int:
    """Multiply-adds of a token's attention over so many positions: scores and values."""
    return 2 * config.num_hidden_layers * config.q_size * positions


def kv_read_bytes(config: Config, positions: int, dtype: str) -> int:
    """Bytes of keys and values that a token at the end of so many positions reads."""
    return 2 * config.num_hidden_layers * config.kv_size * positions * (2 if dtype == "f16" else 4)


def weight_read_bytes(weights: Weights) -> int:
    """Bytes of weights that a token reads: every matrix once; of an embedding that is not the head, a row."""
    matrices = [t for layer in weights.layers for t in (layer.qkv, layer.o, layer.gate_up, layer.down)]
    return sum(t.rows * t.row_bytes for t in (*matrices, weights.head))


@dataclass(frozen=True)
class Parts:
    """Seconds of a token's weights as a bare chain of products in one pass, and of its attention; and of encoding a
    step raw and through wgpu-py's objects."""

    chain_s: float
    attention_s: float
    encode_s: float
    encode_objects_s: float


def chain(model: Model, rows: int, prompt: bool) -> Plan:
    """The model's own products with nothing between them: those of a prompt, or of a step, which has the head too."""
    device, c, weights = model.forward.device, model.config, model.weights
    x = {k: device.tensor(np.ones((rows, k), np.float32)) for k in {c.hidden_size, c.q_size, c.intermediate_size}}
    layers = [(layer.qkv, layer.o, layer.gate_up, layer.down) for layer in weights.layers]
    out = {n: device.empty((rows, n)) for n in {w.rows for w in layers[0]} | (set() if prompt else {weights.head.rows})}

    def forward() -> None:
        for matrices in layers:
            for w in matrices:
                (linear if prompt else matvec)(x[w.columns], w, None, out[w.rows])
        if not prompt:
            matvec(x[c.hidden_size], weights.head, None, out[weights.head.rows])

    return device.record(forward)


def attention_only(model: Model, positions: int, times: int) -> Plan:
    """The attention of all layers for one sequence of so many positions, ``times`` over."""
    device, c = model.forward.device, model.config
    q = device.tensor(np.ones((1, c.q_size), np.float32))
    splits = splits_for(positions)
    partials = device.empty(partial_shape(1, c.num_attention_heads, c.head_dim, splits))
    rows = model.forward.arena.step_rows.head(1)

    def forward() -> None:
        for cache in model.cache.layers * times:
            attention_decode(q, rows, cache, c.num_attention_heads, splits, partials)

    return device.record(forward)


def measure_parts(model: Model, depth: int, repeat: int = 5) -> Parts:
    """Times of the parts of a step at a depth, side by side. Nothing else may run on the model meanwhile."""
    device, cache = model.forward.device, model.cache
    slot, pages = device.call(lambda: cache.take(depth + 1))
    rows = model.forward.arena.step_rows.head(1)
    state = step_rows([1], depth, slot)
    times = max(
        1, min(16, weight_macs(model.config) // attention_macs(model.config, depth + 1))
    )  # submitting costs too
    with device.ledger.tracking() as made:
        plans = {
            "chain": chain(model, 1, prompt=False),
            "attention": attention_only(model, depth + 1, times),
        }
    seconds = time_plans(device, plans, repeat, before=lambda: rows.write(state))
    for name in ("chain", "attention"):
        plans[name].free()
    for buffer in made:
        device.free(buffer)
    device.call(lambda: cache.give(slot, pages))
    step = device.call(lambda: model.forward.decode(1, depth + 1, True))
    raw, objects = (encode_seconds(device, step, way) for way in (True, False))
    return Parts(seconds["chain"], seconds["attention"] / times, raw, objects)


def encode_seconds(device: Device, plan: Plan, raw: bool, repeat: int = 20) -> float:
    """The shortest time of putting a plan's dispatches into a pass; the encoder is dropped."""

    def measure() -> float:
        before, native.use_raw_pass = native.use_raw_pass, raw
        try:
            best = float("inf")
            for _ in range(repeat):
                compute = device.encoder().begin_compute_pass()
                start = time.perf_counter()
                plan.encode(compute)
                best = min(best, time.perf_counter() - start)
                compute.end()
            return best
        finally:
            native.use_raw_pass = before

    return device.call(measure)
