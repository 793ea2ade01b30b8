"""Cases of attention over whole sequences in both directions, several of them in one slot of the cache."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Tensor
from llamagpu.kernels.attention_paged import attention_prefill
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel, as_stored
from llamagpu.kernels.kv_write import PAGE, Cache, cache_columns
from llamagpu.kernels.scores import BLOCK, REACH
from llamagpu.kernels.step import step_rows


def packed_positions(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the rows of sequences of these lengths, which begin at multiples of ``BLOCK``: int64 [rows]; and the
    first and the last position of each row's sequence, uint32 [rows, 2]."""
    sizes = np.asarray(lengths, np.int64)
    starts = np.concatenate([[0], np.cumsum(-(-sizes // BLOCK) * BLOCK)])[:-1]
    first = np.repeat(starts, sizes)
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return first + within, np.stack([first, np.repeat(starts + sizes - 1, sizes)], axis=1).astype(np.uint32)


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    positions, spans = packed_positions(list(d["lengths"]))
    pages = rng.permutation(-(-(int(positions[-1]) + 1) // PAGE)).astype(np.uint32)[None]
    data = rng.standard_normal((pages.size, cache_columns(d["kv_heads"], d["head"])))
    q = rng.standard_normal((len(positions), d["heads"] * d["head"])).astype(np.float32)
    rows = step_rows([0] * len(positions), positions)
    found = {"q": q, "data": as_stored(data, d["format"]), "pages": pages, "rows": rows, "spans": spans}
    if d["relative"]:
        found["relative"] = rng.standard_normal((d["heads"], 2 * REACH)).astype(np.float32)
    return found


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    cache = Cache(bench.put(a["data"], d["format"]), bench.put(a["pages"], "u32"), d["kv_heads"], d["head"])
    rows, spans, out = bench.put(a["rows"], "u32"), bench.put(a["spans"], "u32"), bench.out(a["q"].shape)
    relative = bench.put(a["relative"]) if d["relative"] else None
    return attention_prefill(bench.put(a["q"]), rows, cache, d["heads"], out, spans=spans, relative=relative)


def reference(a: Arrays, d: Dims) -> Expected:
    """Softmax attention over each sequence in float64, on the scale of ``attention_cases``."""
    head, group = d["head"], d["heads"] // d["kv_heads"]
    data = a["data"].astype(np.float64).reshape(-1, 2, d["kv_heads"], PAGE, head)
    q = a["q"].astype(np.float64).reshape(-1, d["heads"], head) * np.float32(head**-0.5)
    value, scale = np.empty_like(q), np.empty_like(q)
    for r, (first, last) in enumerate(a["spans"].astype(np.int64)):
        positions = np.arange(first, last + 1)
        page, place = a["pages"][0, positions // PAGE].astype(np.int64), positions % PAGE
        k, v = (data[page, which, :, place].repeat(group, axis=1) for which in (0, 1))
        score = np.einsum("hd,jhd->hj", q[r], k)
        sizes = np.einsum("hd,jhd->hj", np.abs(q[r]), np.abs(k))
        if d["relative"]:
            bias = a["relative"][:, np.clip(positions - int(a["rows"][r, 1]), -REACH, REACH - 1) + REACH]
            score, sizes = score + bias, sizes + np.abs(bias)
        size = sizes.max(axis=1)
        p = np.exp(score - score.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        value[r], scale[r] = np.einsum("hj,jhd->hd", p, v), np.einsum("hj,jhd->hd", p, np.abs(v)) * (1 + size[:, None])
    return Expected(value.reshape(len(q), -1), scale.reshape(len(q), -1))


def _case(
    lengths: tuple[int, ...], heads: int, kv_heads: int, head: int, format: str = "f32", relative: bool = False
) -> Dims:
    sizes = {"heads": heads, "kv_heads": kv_heads, "head": head}
    return {"lengths": lengths, **sizes, "format": format, "relative": relative}


def _random(rng: np.random.Generator) -> Dims:
    kv_heads, lengths = int(rng.integers(1, 4)), tuple(int(n) for n in rng.integers(1, 90, rng.integers(1, 7)))
    head, group = (4, 32, 64)[rng.integers(3)], (1, 3)[rng.integers(2)]
    return _case(lengths, kv_heads * group, kv_heads, head, ("f32", "f16")[rng.integers(2)], bool(rng.integers(2)))


KERNEL = Kernel(
    "attention_spans",
    _inputs,
    _run,
    reference,
    cases=(
        _case((1,), 1, 1, 4),
        _case((7, 128, 1, 31, 33), 12, 12, 32),
        _case((200, 64), 8, 8, 64, "f16"),
        _case((5, 9), 4, 2, 20),
        _case((16,), 65541, 65541, 4),
        _case((300, 3, 40), 12, 12, 64, relative=True),
    ),
    random=_random,
)
