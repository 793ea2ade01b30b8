"""Cases of the kernels of low-rank changes: inputs, and their float64 references."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Tensor
from llamagpu.kernels.entry import F64, Arrays, Bench, Dims, Expected, Kernel
from llamagpu.kernels.lora import (
    RECORD_WORDS,
    SLOT_WORDS,
    Adapters,
    Change,
    Columns,
    block,
    lora_down,
    lora_up,
    record,
)
from llamagpu.kernels.prenorm import prenorm_reference
from llamagpu.kernels.product import normed, plain
from llamagpu.kernels.step import step_rows

_EPS = 1e-5

# A case has m rows of x [m, k], the columns of a product, and for each adapter the rank of every matrix; 0 is none.
# Each adapter has a slot, and one more slot has no adapter.


def _changes(rng: np.random.Generator, d: Dims) -> list[list[Change | None]]:
    def change(n: int, rank: int) -> Change | None:
        if not rank:
            return None
        a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((rank, d["k"]), (n, rank)))
        return Change(a, b, float(np.float32(rng.uniform(0.1, 2))))

    return [[change(n, r) for n, r in zip(d["counts"], ranks, strict=True)] for ranks in d["ranks"]]


def _inputs(rng: np.random.Generator, d: Dims) -> Arrays:
    changes, columns = _changes(rng, d), Columns(tuple(d["counts"]), d["alternate"])
    blocks, records, place = [np.zeros((1, 4), np.float32)], [], 1
    a: Arrays = {}
    for i, own in enumerate(changes):
        for j, change in enumerate(own):
            if change is not None:
                a |= {f"a{i}.{j}": change.a, f"b{i}.{j}": change.b, f"s{i}.{j}": np.array(change.scale)}
        records.append(record(own, d["k"], place) if any(own) else np.zeros(RECORD_WORDS, np.uint32))
        blocks.append(block(own, columns, d["k"]) if any(own) else np.zeros((0, 4), np.float32))
        place += len(blocks[-1])
    slots = np.zeros((len(changes) + 1, SLOT_WORDS), np.uint32)
    slots[:-1, 0] = rng.permutation(len(changes)) + 1
    slots[:, 1] = rng.uniform(-2, 2, len(slots)).astype(np.float32).view(np.uint32)
    x = rng.standard_normal((d["m"], d["k"])).astype(np.float32)
    a |= {"x": x if d["source"] == "plain" else prenorm_reference(x, np.ones(d["k"]))}
    a |= {"pool": np.concatenate(blocks), "records": np.stack(records), "slots": slots}
    a["rows"] = step_rows([0] * d["m"], 0, rng.integers(0, len(slots), d["m"]))
    a["t"] = rng.standard_normal((d["m"], _rank(d))).astype(np.float32)
    return a | {"bias": rng.standard_normal(columns.whole).astype(np.float32)}


def _rank(d: Dims) -> int:
    return max(1, *(int(sum(ranks)) for ranks in d["ranks"]))


def _put(bench: Bench, a: Arrays, d: Dims) -> tuple[Adapters, Tensor]:
    records, slots = (bench.put(a[name], "u32") for name in ("records", "slots"))
    columns = Columns(tuple(d["counts"]), d["alternate"])
    return Adapters(bench.put(a["pool"]), records, slots, columns, _rank(d)), bench.put(a["rows"], "u32")


def _run_down(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    adapters, rows = _put(bench, a, d)
    x, t = bench.put(a["x"]), bench.change(a["t"])
    lora_down(plain(x) if d["source"] == "plain" else normed(x, d["k"], _EPS), adapters, rows, t)
    return t


def _run_up(bench: Bench, a: Arrays, d: Dims) -> Tensor:
    adapters, rows = _put(bench, a, d)
    bias, out = bench.put(a["bias"]) if d["bias"] else None, bench.out((d["m"], sum(d["counts"])))
    return lora_up(bench.put(a["t"]), adapters, rows, bias, out)


def _users(a: Arrays, d: Dims) -> Iterator[tuple[npt.NDArray[np.int64], list[tuple[int, F64, F64, float]]]]:
    """For every slot: the rows that use it, and the changes of its adapter: matrix, A, B and scale in float64."""

    def wide(name: str) -> F64:
        return a[name].astype(np.float64)

    for slot, words in enumerate(a["slots"]):
        i, scale = int(words[0]) - 1, float(words[1:2].view(np.float32)[0])
        found = [j for j in range(len(d["counts"])) if i >= 0 and f"a{i}.{j}" in a]
        own = [(j, wide(f"a{i}.{j}"), wide(f"b{i}.{j}"), scale * float(a[f"s{i}.{j}"])) for j in found]
        yield np.flatnonzero(a["rows"][:, 2] == slot), own


def down_reference(a: Arrays, d: Dims) -> Expected:
    """t in float64; what a row's adapter does not have stays as it was."""
    x = a["x"].astype(np.float64)
    if d["source"] == "normed":
        total = x[:, 4 * -(-d["k"] // 4) :].sum(axis=1, keepdims=True)
        x = x[:, : d["k"]] / np.sqrt(total / d["k"] + np.float32(_EPS))
    value = a["t"].astype(np.float64)
    scale = np.abs(value)
    for rows, changes in _users(a, d):
        first = 0
        for _, down, _, _ in changes:
            end = first + len(down)
            value[rows, first:end], scale[rows, first:end] = x[rows] @ down.T, np.abs(x[rows]) @ np.abs(down.T)
            first = end
    return Expected(value, scale)


def up_reference(a: Arrays, d: Dims) -> Expected:
    """bias + scale · B t in float64, on the scale |bias| + |scale| · Σ|B · t|."""
    columns = Columns(tuple(d["counts"]), d["alternate"])
    bias = a["bias"].astype(np.float64) if d["bias"] else np.zeros(columns.whole)
    value, size = np.tile(bias, (d["m"], 1)), np.tile(np.abs(bias), (d["m"], 1))
    for rows, changes in _users(a, d):
        first = 0
        for j, _, up, scale in changes:
            t = a["t"][rows, first : first + up.shape[1]].astype(np.float64)
            value[rows, columns.of(j)] += scale * (t @ up.T)
            size[rows, columns.of(j)] += abs(scale) * (np.abs(t) @ np.abs(up.T))
            first += up.shape[1]
    return Expected(value, size)


def _case(m: int, k: int, counts: Sequence[int], ranks: Sequence[Sequence[int]], **more: object) -> Dims:
    return (
        {"m": m, "k": k, "counts": counts, "ranks": ranks}
        | {
            "alternate": False,
            "source": "plain",
            "bias": False,
        }
        | more
    )


def _random(rng: np.random.Generator) -> Dims:
    matrices, adapters = int(rng.integers(1, 4)), int(rng.integers(1, 9))
    alternate = matrices == 2 and bool(rng.integers(2))
    n = [4 * int(rng.integers(1, 40)) for _ in range(matrices)]
    ranks = [[int(rng.integers(0, 20)) for _ in n] for _ in range(adapters)]
    counts = [n[0]] * 2 if alternate else n if matrices > 1 else [n[0] + int(rng.integers(4))]
    source, m = ("plain", "normed")[rng.integers(2)], int(rng.integers(1, 40))
    bias = bool(rng.integers(2))
    return _case(m, int(rng.integers(1, 500)), counts, ranks, alternate=alternate, source=source, bias=bias)


_CASES = (
    _case(1, 1, [1], [[1]]),
    _case(8, 576, [576, 192, 192], [[16, 0, 16], [8, 8, 8], [0, 64, 0]], source="normed"),
    _case(3, 97, [98, 98], [[4, 7], [0, 3]], alternate=True, bias=True),
    _case(33, 1536, [577], [[8], [0], [65]], bias=True),
)

LORA_DOWN = Kernel(
    "lora_down", _inputs, _run_down, down_reference, cases=(*_CASES, _case(65539, 4, [4], [[1]])), random=_random
)
LORA_UP = Kernel(
    "lora_up", _inputs, _run_up, up_reference, cases=(*_CASES, _case(65539, 1, [128], [[1]])), random=_random
)
