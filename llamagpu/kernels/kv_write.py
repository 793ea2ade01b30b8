"""Writing a step's keys and values into the paged cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Program, Tensor
from llamagpu.kernels.arguments import parts, require, require_floats, require_rows
from llamagpu.kernels.entry import Arrays, Bench, Dims, Expected, Kernel
from llamagpu.kernels.step import step_rows as make_rows

PAGE = 16


@dataclass(frozen=True)
class Cache:
    """One layer's keys and values: f32 or f16 [pages, 2 · kv_heads · PAGE · head_dim], laid out in a page as
    [K and V, kv_heads, PAGE, head_dim]; and the page table of its sequences, u32 [slots, pages of a sequence]."""

    data: Tensor
    pages: Tensor
    kv_heads: int
    head_dim: int

    @property
    def consts(self) -> tuple[tuple[str, int], ...]:
        return ("D4", self.head_dim // 4), ("PAGE", PAGE)


def cache_columns(kv_heads: int, head_dim: int) -> int:
    """Elements in a page of one layer."""
    return 2 * kv_heads * PAGE * head_dim


def kv_write(x: Tensor, rows: Tensor, cache: Cache, first: int) -> Tensor:
    """Store the K heads of every row, and the V heads that follow them, at the row's position.

    Args:
        x: f32 [rows, …]; K begins at column ``first``.
        rows: u32 [rows, 4], the step's state: (token, position, slot, 0).
        cache: the layer's cache; f16 rounds to nearest and holds ±65,504.
    """
    device = require_floats("kv_write", x=x)
    require_rows("kv_write", rows)
    require(cache.head_dim % 4 == 0 and first % 4 == 0, "kv_write: head_dim must be a multiple of 4")
    require(first + 2 * cache.kv_heads * cache.head_dim <= x.columns, "kv_write: x has too few columns")
    device.dispatch(
        Program("kv_write", (("kv_store", cache.data.dtype),), cache.consts),
        -(-x.rows * cache.kv_heads * cache.head_dim // 128),
        {
            "rows": x.rows,
            "kv_heads": cache.kv_heads,
            "stride4": x.stride // 4,
            "first4": first // 4,
            "table": cache.pages.stride,
        },
        parts(step_rows=rows, pages=cache.pages, x=x, kv=cache.data),
    )
    return cache.data


def address(pages: npt.NDArray[np.uint32], rows: npt.NDArray[np.uint32]) -> tuple[npt.NDArray[np.int64], ...]:
    """Page and place in the page for every row of a step's state."""
    slot, position = rows[:, 2].astype(np.int64), rows[:, 1].astype(np.int64)
    return pages[slot, position // PAGE].astype(np.int64), position % PAGE


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    per_slot = -(-d["rows"] // PAGE) + 1
    pages = rng.permutation(d["slots"] * per_slot).astype(np.uint32).reshape(d["slots"], per_slot)
    order = rng.permutation(d["slots"] * per_slot * PAGE)[: d["rows"]]
    rows = make_rows([0] * d["rows"], order % (per_slot * PAGE), order // (per_slot * PAGE))
    x = rng.standard_normal((d["rows"], d["first"] + 2 * d["kv_heads"] * d["head"]), np.float32)
    return {"x": x, "rows": rows, "pages": pages}


def _run(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    data = bench.out((a["pages"].size, cache_columns(d["kv_heads"], d["head"])), d["format"])
    cache = Cache(data, bench.put(a["pages"], "u32"), d["kv_heads"], d["head"])
    return kv_write(bench.put(a["x"]), bench.put(a["rows"], "u32"), cache, d["first"])


def reference(a: Arrays, d: Dims) -> Expected:
    """The whole cache after the write; float16 to one unit in the last place."""
    out = np.zeros((a["pages"].size, 2, d["kv_heads"], PAGE, d["head"]))
    page, place = address(a["pages"], a["rows"])
    heads = a["x"][:, d["first"] :].reshape(-1, 2, d["kv_heads"], d["head"])
    heads = heads.astype(np.float16 if d["format"] == "f16" else np.float32).astype(np.float64)
    out[page, :, :, place] = heads
    # Drivers may round ties differently: one unit in the last place of f16.
    scale = np.abs(out) * (2.0**-10 / 1e-6 if d["format"] == "f16" else 0.0)
    shape = (a["pages"].size, -1)
    return Expected(out.reshape(shape), scale.reshape(shape))


def _random(rng: np.random.Generator) -> Dims:
    return {
        "rows": int(rng.integers(1, 90)),
        "slots": int(rng.integers(1, 5)),
        "kv_heads": int(rng.integers(1, 9)),
        "head": 4 * int(rng.integers(1, 33)),
        "first": 4 * int(rng.integers(0, 60)),
        "format": ("f32", "f16")[rng.integers(2)],
    }


KERNEL = Kernel(
    "kv_write",
    _inputs,
    _run,
    reference,
    cases=(
        {"rows": 1, "slots": 1, "kv_heads": 1, "head": 4, "first": 0, "format": "f32"},
        {"rows": 1, "slots": 1, "kv_heads": 3, "head": 64, "first": 576, "format": "f16"},
        {"rows": 31, "slots": 4, "kv_heads": 2, "head": 80, "first": 160, "format": "f32"},
        {"rows": 512, "slots": 1, "kv_heads": 8, "head": 64, "first": 64, "format": "f16"},
        {"rows": 65541, "slots": 1, "kv_heads": 4, "head": 32, "first": 0, "format": "f32"},
    ),
    random=_random,
    tolerance=1e-6,
)
