"""Tunings: which variant of each kernel runs, with a good default for each kind of adapter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

SHADER_F16, SHADER_INT64, SUBGROUP = "shader-f16", "shader-int64", "subgroup"
_HELD = 64  # most elements of x that a lane of product_passes keeps in registers


@dataclass(frozen=True)
class Lanes:
    """How ``product_lanes`` divides its work.

    ``lanes`` neighbours share a row of the weights. Each loads ``ahead`` pieces at once for ``rows`` rows and a single
    vector, or ``several`` pieces for four rows and several vectors; ``wide`` pieces are twice as long. ``lanes`` and
    ``wide`` change the order of additions, so they are chosen once for a format and a number of columns.

    Two kernels add in the same order. If ``block`` is 8, ``product_block`` multiplies eight rows with eight vectors. If
    ``passes`` is above 1, ``product_passes`` takes so many times the rows one after another, with a single vector in
    registers, where the lanes can hold it.
    """

    lanes: int = 32
    wide: bool = False
    rows: int = 1
    ahead: int = 4
    workgroup: int = 128
    several: int = 1
    block: int = 4
    passes: int = 1

    @property
    def order(self) -> tuple[int, bool]:
        """The fields that the order of additions depends on."""
        return self.lanes, self.wide

    def holds(self, columns: int) -> bool:
        """Whether the registers of the lanes hold a vector with so many elements."""
        return columns <= _HELD * self.lanes


@dataclass(frozen=True)
class TunedLanes:
    """The measured ``Lanes`` of weights [rows, columns] in a format (``f16``, ``affine4``, …)."""

    format: str
    columns: int
    rows: int
    cut: Lanes


@dataclass(frozen=True)
class Tuning:
    """The choices that shapes and dtypes leave open.

    Every combination gives right results within the kernels' tolerances. The defaults need nothing beyond WebGPU's
    default limits.

    Attributes:
        reduce: ``workgroup`` or ``subgroup``: how the invocations of a workgroup add up.
        f16: ``unpack`` or ``native``: how f16 weights and caches are read; native needs shader-f16.
        matvec: ``rows`` or ``lanes``: whole rows of weights to an invocation, or many lanes along each row.
        matmul: ``rows`` or ``tiled``: registers alone, or tiles in workgroup memory.
        tiles: workgroups that ``product_tiled`` must have before it takes larger tiles.
        attention: ``blocks`` or ``whole``: a run of decode attention in blocks of positions, or at once.
        share: ``none`` or ``subgroup``: whether eight neighbours share their loads of x (needs subgroups of eight).
        words: ``u32`` or ``u64``: the integers of a load of 16 bytes; u64 needs shader-int64.
        order: ``plain`` or ``woven``: the order of weight rows in memory, chosen when weights are loaded.
        merged_runs: attention runs that the output projection merges; 1 merges in a dispatch of its own.
        squares: ``apart`` or ``joined``: whether a team gathers its part of a norm's sum apart from its products, or
            with them, if it has one or two for a single vector. The bits are the same.
        gather: ``whole`` or ``transposed``: whether an invocation carries four of a team's sums or one while they are
            added. The bits are the same.
        digits: ``integers`` or ``halves``: whether quantized weights become floats singly or in pairs. The bits are the
            same.
        chunk: scores of a row that a workgroup of ``sample`` reduces, at least 1024.
        pickers: invocations of that workgroup.
        trusted: shaders without bounds checks and loop bounds.
        lanes: measured divisions of ``product_lanes``.
        all_lanes: one division for all products, instead of ``lanes`` and the rule.
    """

    reduce: str = "workgroup"
    f16: str = "unpack"
    matvec: str = "rows"
    matmul: str = "rows"
    tiles: int = 512
    attention: str = "blocks"
    share: str = "none"
    words: str = "u32"
    order: str = "plain"
    merged_runs: int = 4
    squares: str = "apart"
    gather: str = "whole"
    digits: str = "integers"
    chunk: int = 1024
    pickers: int = 256
    trusted: bool = False
    lanes: tuple[TunedLanes, ...] = ()
    all_lanes: Lanes | None = None

    def lanes_for(self, format: str, columns: int, rows: int) -> Lanes:
        """How ``product_lanes`` divides weights [rows, columns] of a format: as measured, or by a rule that keeps the
        order of additions measured for these columns."""
        if self.all_lanes is not None:
            return self.all_lanes
        measured = {t.rows: t.cut for t in self.lanes if (t.format, t.columns) == (format, columns)}
        if rows in measured:
            return measured[rows]
        cut = default_lanes(format, columns, rows)
        for other in measured.values():
            team = other.lanes
            return replace(cut, lanes=team, wide=other.wide, workgroup=max(cut.workgroup, 4 * team // cut.rows))
        return cut


class ReadTuning:
    """A tuning that notes which of its fields were read. Use it in place of a ``Tuning``."""

    def __init__(self, tuning: Tuning):
        self._tuning = tuning
        self.fields: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.fields |= {"lanes", "all_lanes"} if name == "lanes_for" else {name}
        return getattr(self._tuning, name)


def default_lanes(format: str, columns: int, rows: int) -> Lanes:
    """The rule for GPUs: long rows get more lanes. If there are many rows, a team takes several, which saves loads."""
    many = rows >= 8192
    return Lanes(
        lanes=32 if columns < 6144 else 128,
        wide=True,
        rows=(2 if format in ("f32", "f16", "bf16") else 4) if many else 2 if columns >= 6144 else 1,
        ahead=4,
        workgroup=128 if columns < 6144 else 256,
    )


def default_tuning(kind: str, features: frozenset[str], subgroup_size: int) -> Tuning:
    """The built-in choice: invocations share the work of a row on GPUs, but not on software adapters.

    Args:
        subgroup_size: as counted on the device; 0 if it was not counted.
    """
    if kind == "software":
        # Trusted shaders measured 1.1 to 3 times as fast here. The host checks or clamps every index read from data,
        # and these drivers mask accesses outside a binding.
        return Tuning(
            share="subgroup" if subgroup_size == 8 else "none",
            words="u64" if SHADER_INT64 in features else "u32",
            order="woven",
            merged_runs=1,
            chunk=4096,
            pickers=8,
            trusted=True,
        )
    return Tuning(
        reduce="subgroup" if SUBGROUP in features else "workgroup",
        f16="native" if SHADER_F16 in features else "unpack",
        matvec="lanes",
        matmul="tiled",
        attention="whole",
    )


# Divisions of product_lanes that together take every path through it.
_CUTS = (Lanes(32, False, 4, 2, 128, 2), Lanes(64, True, 2, 1, 256, 1), Lanes(128, True, 4, 4, 256, 1))
_BLOCK = Lanes(32, True, 1, 8, 256, block=8), Lanes(128, False, 2, 8, 256, block=8)
_PASSES = replace(_CUTS[1], passes=8)


def variants(features: frozenset[str], subgroup_size: int) -> list[Tuning]:
    """Tunings that together cover every linked combination the device can run, the default first."""
    out = [Tuning(), Tuning(matvec="lanes", matmul="tiled", attention="whole")]
    if SUBGROUP in features:
        out.append(replace(out[1], reduce="subgroup"))
    if subgroup_size == 8:
        out.append(replace(out[0], share="subgroup", words="u64" if SHADER_INT64 in features else "u32"))
    if SHADER_F16 in features:
        out += [replace(t, f16="native") for t in out if t.reduce == "workgroup"]
    out.append(replace(out[0], order="woven", chunk=4096, pickers=8))
    out += [replace(out[1], all_lanes=cut, tiles=1) for cut in _CUTS]
    blocks = [replace(out[1], all_lanes=cut, digits="halves", gather="transposed", squares="joined") for cut in _BLOCK]
    if SUBGROUP in features:
        blocks[0] = replace(blocks[0], reduce="subgroup")
    return [*out, *blocks, replace(out[1], all_lanes=_PASSES, tiles=1, squares="joined")]
