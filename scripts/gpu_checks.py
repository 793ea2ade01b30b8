"""First checks of a GPU for ``bench_gpu``: attention alone, reductions by matrix, prefetching, and results that
workgroups share within a dispatch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from gpu_budget import Budget

from llamagpu import gpu
from llamagpu.gpu.timing import time_plans
from llamagpu.kernels.attention_paged import attention_decode, partial_shape
from llamagpu.kernels.glu import glu
from llamagpu.kernels.kv_write import PAGE, Cache, cache_columns
from llamagpu.kernels.noise import hash_words, noise
from llamagpu.kernels.product import plain, product
from llamagpu.kernels.step import step_rows
from llamagpu.model import Config
from llamagpu.model.layout import Key, Layout
from llamagpu.model.tuner_products import Products, shapes_of
from llamagpu.model.weights import empty_matrix

_POSITIONS = 129  # that attention sees: one run
_L2_BYTES = 200_000_000  # what a cold chain cycles through: over twice the largest L2
_PREFETCHED = (1_000_000, 4_000_000, 16_000_000, 48_000_000)  # bytes, beside all of a matrix
_OWN = "../scripts/wgsl"  # shaders that only these checks run


class _Attention:
    """Decode attention of one sequence after 128 tokens, over ``count`` caches."""

    def __init__(self, device: gpu.Device, config: Config, count: int):
        pages, c = -(-_POSITIONS // PAGE), config
        self._heads = c.num_attention_heads
        datas = [
            noise(device.empty((pages, cache_columns(c.num_key_value_heads, c.head_dim)), "f16"), n)
            for n in range(count)
        ]
        table = device.tensor(np.arange(pages, dtype=np.uint32)[None], "u32")
        self.caches = [Cache(data, table, c.num_key_value_heads, c.head_dim) for data in datas]
        self._rows = device.tensor(step_rows([0], _POSITIONS - 1), "u32")
        self.out = device.empty(partial_shape(1, self._heads, c.head_dim, 1))

    def run(self, q: gpu.Tensor, cache: Cache) -> gpu.Tensor:
        """The attention of q over a cache."""
        return attention_decode(q, self._rows, cache, self._heads, 1, self.out)


def _timed(device: gpu.Device, plans: dict[Any, gpu.Plan], short: bool) -> dict[Any, float]:
    """Seconds of each plan; the plans are freed."""
    times = time_plans(device, plans, 3 if short else 9)
    for plan in plans.values():
        plan.free()
    return times


def attention_alone(device: gpu.Device, config: Config, budget: Budget, short: bool) -> list[dict[str, Any]]:
    """Seconds of one layer's decode attention: over one cache again and again, which stays in L2, and over many caches
    that together exceed it."""
    pages = -(-_POSITIONS // PAGE)
    count = 4 if short else _L2_BYTES // (2 * pages * cache_columns(config.num_key_value_heads, config.head_dim))
    found = []
    with device.ledger.tracking() as made:
        attention = _Attention(device, config, count)
        q = device.tensor(np.ones((1, config.q_size), np.float32))
    for kind in ("whole", "blocks"):
        if not budget.allows(f"attention {kind}"):
            continue
        tuning = replace(device.tuning, attention=kind)

        def record(used: Sequence[Cache], tuning: gpu.Tuning = tuning) -> gpu.Plan:
            return device.record(lambda: [attention.run(q, cache) for cache in used], tuning)

        plans = {"warm_s": record(attention.caches[:1] * count), "cold_s": record(attention.caches)}
        times = _timed(device, plans, short)
        found.append({"kind": kind, **{name: seconds / count for name, seconds in times.items()}})
    for buffer in made:
        device.free(buffer)
    return found


def reductions(device: gpu.Device, layout: Layout, budget: Budget, short: bool) -> list[dict[str, Any]]:
    """Seconds of one product with each matrix of a shape, by the way in which the lanes of a team add up; the rule
    divides the work, as when the tuner chooses this way."""
    base = replace(device.tuning, matvec="lanes", order="plain", lanes=())
    ways = {"workgroup": replace(base, reduce="workgroup")}
    if "subgroup" in device.features:
        ways["subgroup"] = replace(base, reduce="subgroup", gather="whole")
        ways["transposed"] = replace(base, reduce="subgroup", gather="transposed")
    products, found = Products(device), []
    for shape in shapes_of(layout)[: 1 if short else None]:
        m = shape.matrix
        if not budget.allows(f"reductions of {m.rows} × {m.columns} {m.format_name}"):
            continue
        times = products.seconds(shape, list(ways.values()), 1)
        row = {"format": m.format_name, "rows": m.rows, "columns": m.columns, "count": shape.count}
        row |= {"normed": shape.normed, "seconds": {name: times[t] for name, t in ways.items() if t in times}}
        found.append(row)
    return found


def prefetching(device: gpu.Device, layout: Layout, budget: Budget, short: bool) -> list[dict[str, Any]]:
    """Seconds of attention and gate_up, which wait for each other, with and without a dispatch between them that does
    not wait for attention and reads the beginning of gate_up's weights."""
    matrix, config = layout.matrices[Key("gate_up", 0)], layout.config
    name = f"prefetching {matrix.format_name}"
    if not budget.allows(name):
        return []
    count = 2 if short else int(max(3, min(16, _L2_BYTES // matrix.nbytes)))
    with device.ledger.tracking() as made:
        weights = [noise(empty_matrix(device, matrix, device.tuning.order == "woven")) for _ in range(count)]
        sinks = [device.empty((1, 4), "u32") for _ in range(count)]
        attention = _Attention(device, config, count)
        gated = device.empty((1, config.intermediate_size))
    whole = weights[0].parts[0].size

    def link(i: int, nbytes: int, w: gpu.Tensor) -> None:
        attended = attention.run(gated, attention.caches[i])
        if nbytes:
            prefetch(w, nbytes, sinks[i])
        product(plain(attended), w, None, glu(gated))

    sizes = [n for n in _PREFETCHED if n < whole] + [whole]
    plans: dict[Any, gpu.Plan] = {
        n: device.record(lambda n=n: [link(i, n, w) for i, w in enumerate(weights)]) for n in (0, *sizes)
    }
    plans["same"] = device.record(lambda: [link(i, 0, weights[0]) for i in range(count)])
    plans["alone"] = device.record(lambda: [prefetch(w, whole, sinks[i]) for i, w in enumerate(weights)])
    times = {n: seconds / count for n, seconds in _timed(device, plans, short).items()}
    for buffer in made:
        device.free(buffer)
    row = {"format": matrix.format_name, "rows": matrix.rows, "columns": matrix.columns, "bytes": whole}
    row |= {"same_weights_s": times["same"], "prefetch_alone_s": times["alone"]}
    return [row | {"steps": [{"bytes": n, "seconds": times[n]} for n in (0, *sizes)]}]


def prefetch(w: gpu.Tensor, nbytes: int, sink: gpu.Tensor) -> None:
    """Read the beginning of a matrix. ``sink`` is not written."""
    part, sectors = w.parts[0], max(1, nbytes // 32)
    bindings = {"data": part, "sink": sink.part}
    w.device.dispatch(gpu.Program(f"{_OWN}/prefetch"), -(-sectors // 1024), {"sectors": sectors}, bindings)


def arrivals(device: gpu.Device, budget: Budget, short: bool) -> list[dict[str, Any]]:
    """Whether the last workgroup to arrive reads what the others wrote in the same dispatch, after a storage barrier
    and an atomic counter: sums of partial results that differ from the host's, for plain partials, for atomic ones, and
    for plain ones without the barrier."""
    found, rounds = [], 4 if short else 200
    for name, entry, fence in (
        ("plain", "plain", (("FENCED", 1),)),
        ("atomic", "atomic_cells", ()),
        ("plain, no barrier", "plain", (("FENCED", 0),)),
    ):
        for blocks, each in ((16, 8), (256, 16)):
            if budget.allows(f"arrivals {name}, {blocks} × {each}"):
                program = gpu.Program(f"{_OWN}/arrivals", (), (("ARRIVALS", each),), fence, entry)
                wrong = _wrong_sums(device, program, blocks, each, rounds)
                row = {"partials": name, "blocks": blocks, "each": each, "sums": rounds * blocks * 64}
                found.append(row | {"wrong": wrong})
    return found


def _wrong_sums(device: gpu.Device, program: gpu.Program, blocks: int, each: int, rounds: int) -> int:
    """Sums that differ from the host's, over many dispatches that use the same memory for their partials."""
    with device.ledger.tracking() as made:
        arrived = device.empty((blocks,), "u32")
        partials, cells = (device.empty((blocks * each, 64), "u32") for _ in range(2))
        outs = [device.empty((blocks, 64)) for _ in range(rounds)]

    def run() -> None:
        for round_, out in enumerate(outs):
            parts = {"arrived": arrived.part, "partials": partials.part, "cells": cells.part, "out": out.part}
            device.dispatch(program, blocks * each, {"blocks": blocks, "round": round_}, parts)

    plan = device.record(run)
    device.call(plan.run)
    wrong = sum(int((out.numpy() != arrival_sums(blocks, each, i)).sum()) for i, out in enumerate(outs))
    plan.free()
    for buffer in made:
        device.free(buffer)
    return wrong


@lru_cache(maxsize=1024)  # for every kind of partials
def arrival_sums(blocks: int, each: int, round_: int) -> npt.NDArray[np.float32]:
    """The sums of ``arrivals.wgsl``, f32 [blocks, 64], added up in order."""
    seed = (round_ * 0x9E3779B9) & 0xFFFFFFFF
    bits = hash_words(blocks * each * 64, seed) & 0xFFFF
    values = (bits / np.float32(32768) - np.float32(1)).astype(np.float32).reshape(blocks, each, 64)
    total = np.zeros((blocks, 64), np.float32)
    for i in range(each):
        total += values[:, i]
    return total
