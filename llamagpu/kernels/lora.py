"""Low-rank changes of a product, W + scale · B A, of the adapter that each row uses (LoRA, Hu et al. 2021,
arXiv:2106.09685). Two kernels make a bias for every row, which the product adds.

The matrices of all adapters of a layer are in one pool. Row m uses the adapter of its slot, or none. The order of
additions for a row depends on its own adapter alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Program, Tensor, pack_rows
from llamagpu.kernels.arguments import parts, require, require_floats, require_rows, require_vectors
from llamagpu.kernels.product import Source, uniforms

RECORD_WORDS = 16  # of an adapter in ``Adapters.records``
SLOT_WORDS = 4  # number of the adapter + 1, or 0; the bits of the request's scale
MATRICES = 3  # that a product fuses
LANES, WORKGROUP = 16, 64
Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint32]


class Ranked(Protocol):
    """A change of one matrix."""

    @property
    def rank(self) -> int:
        """Rows of A."""

    @property
    def scale(self) -> float:
        """The factor of B A."""


@dataclass(frozen=True)
class Change:
    """The low-rank change of one matrix [n, k]: ``scale · B A``, with A [rank, k] and B [n, rank]."""

    a: Floats
    b: Floats
    scale: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return len(self.a)


@dataclass(frozen=True)
class Columns:
    """Which columns of a product belong to each of the matrices that it fuses: a run for each, or every second one."""

    counts: tuple[int, ...]
    alternate: bool = False

    @property
    def whole(self) -> int:
        """Columns of the product."""
        return sum(self.counts)

    def of(self, matrix: int) -> slice:
        """The columns of a matrix."""
        if self.alternate:
            return slice(matrix, None, 2)
        first = sum(self.counts[:matrix])
        return slice(first, first + self.counts[matrix])


@dataclass(frozen=True)
class Adapters:
    """The adapters of one product.

    Attributes:
        pool: f32 [places, 4]: matrices of these adapters, and of others.
        records: u32 [adapters, RECORD_WORDS], see ``record``.
        slots: u32 [slots, SLOT_WORDS].
        rank: the most rows of A of one adapter, over all matrices that the product fuses.
    """

    pool: Tensor
    records: Tensor
    slots: Tensor
    columns: Columns
    rank: int


def block(changes: Sequence[Change | None], columns: Columns, k: int) -> Floats:
    """An adapter's matrices for one product as they lie in the pool: float32 [places, 4]. The rows of all A come first,
    then the transpose of B, whose columns are those of the product. None is a matrix without a change."""
    present = [c for c in changes if c is not None]
    up = np.zeros((max(c.rank for c in present), columns.whole), np.float32)
    for i, change in enumerate(changes):
        if change is not None:
            up[: change.rank, columns.of(i)] = change.b.T
    down = np.concatenate([c.a for c in present])
    require(down.shape[1] == k, f"lora: A must have {k} columns, not {down.shape[1]}")
    both = [pack_rows(m, "f32").view(np.float32).reshape(-1, 4) for m in (down, up)]
    return np.concatenate(both)


def block_places(changes: Sequence[Ranked | None], columns: Columns, k: int) -> int:
    """The rows of a ``block``."""
    ranks = [c.rank for c in changes if c is not None]
    return sum(ranks) * -(-k // 4) + max(ranks) * -(-columns.whole // 4)


def record(changes: Sequence[Ranked | None], k: int, place: int) -> Words:
    """The words of an adapter whose ``block`` begins at ``place`` of the pool: uint32 [RECORD_WORDS] (``lib/lora``)."""
    words = np.zeros((1 + MATRICES, 4), np.uint32)
    first = 0
    for i, change in enumerate(changes):
        if change is not None:
            words[1 + i] = first, change.rank, np.float32(change.scale).view(np.uint32), 0
            first += change.rank
    words[0] = place, first, place + first * -(-k // 4), 0
    return words.reshape(-1)


def lora_down(source: Source, adapters: Adapters, rows: Tensor, t: Tensor) -> None:
    """``t[m, r] = source[m] · A[r]`` for the rows of A of the adapter of row m; others of t stay as they are.

    Args:
        source: ``plain`` or ``normed``.
        rows: u32 [m, 4], the step's state.
        t: f32 [m, at least ``adapters.rank``].
    """
    device = require_floats("lora_down", t=t, pool=adapters.pool)
    require_rows("lora_down", rows)
    require(source.libs == (("source", "plain"),), "lora_down: the source must be plain or normed")
    require(rows.rows == t.rows == source.m and t.columns >= adapters.rank, "lora_down: t must be [m, rank]")
    libs = (*source.libs, ("norm", source.norm), ("reduce", device.tuning.reduce), ("words", device.tuning.words))
    device.dispatch(
        Program("lora_down", libs, (("WORKGROUP", WORKGROUP), ("LANES", LANES))),
        source.m * -(-adapters.rank * LANES // WORKGROUP),
        uniforms(source) | {"rows": adapters.rank, "out_stride": t.stride},
        source.parts | _windows(adapters, rows) | {"out": t.part},
        work=source.m * adapters.rank * source.k,
        reads=min(source.m * adapters.rank * source.k * 4, adapters.pool.nbytes),
    )


def lora_up(t: Tensor, adapters: Adapters, rows: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """``out[m, n] = bias[n] + scale · t[m] · B[n]`` of the adapter of row m, or the bias alone.

    Args:
        t: f32 [m, …], from ``lora_down``.
        rows: u32 [m, 4], the step's state.
        bias: f32 [n]; None is 0.
        out: f32 [m, n].
    """
    device = require_floats("lora_up", t=t, bias=bias, out=out)
    require_rows("lora_up", rows)
    require_vectors("lora_up", out.columns, bias=bias)
    columns, n4 = adapters.columns, out.stride // 4
    require(rows.rows == t.rows == out.rows and out.columns == columns.whole, "lora_up: out must be [m, n]")
    ends = [columns.whole] * MATRICES if columns.alternate else [*np.cumsum(columns.counts).tolist(), *[out.stride] * 2]
    params = {"m": out.rows, "n4": n4, "t_stride": t.stride, "second": ends[0], "third": ends[1]}
    device.dispatch(
        Program("lora_up", (("bias", "none" if bias is None else "add"),)),
        -(-out.rows * n4 // 32),
        params | {"alternate": int(columns.alternate), "bias_stride": 0},
        parts(t=t, out=out) | _windows(adapters, rows) | ({} if bias is None else {"bias": bias.part}),
        work=out.rows * adapters.rank * out.columns,
        reads=min(out.rows * adapters.rank * out.columns * 4, adapters.pool.nbytes),
    )
    return out


def _windows(adapters: Adapters, rows: Tensor) -> dict[str, Any]:
    own = {"lora_slots": adapters.slots, "lora_records": adapters.records, "lora_pool": adapters.pool}
    return parts(step_rows=rows, **own)
