"""Which variant of a kernel runs: data with a good default for each kind of adapter."""

from __future__ import annotations

from dataclasses import dataclass, replace

SHADER_F16, SUBGROUP = "shader-f16", "subgroup"


@dataclass(frozen=True)
class Lanes:
    """How ``product_lanes`` is cut: ``lanes`` neighbours go along a row of the weights, ``ahead`` pieces at once, for
    ``rows`` rows of a single vector, and ``several`` pieces for four rows of several vectors; ``wide`` pieces are twice
    as long. ``lanes`` and ``wide`` change the order of additions, so they are chosen once for a format and a number of
    columns."""

    lanes: int = 32
    wide: bool = False
    rows: int = 1
    ahead: int = 4
    workgroup: int = 128
    several: int = 1

    @property
    def order(self) -> tuple[int, bool]:
        """What the order of additions depends on."""
        return self.lanes, self.wide


@dataclass(frozen=True)
class Tuning:
    """The choices that are not forced by shapes or dtypes.

    Every combination gives right results within the kernels' tolerances; ``baseline`` needs nothing beyond
    WebGPU's default limits.
    """

    reduce: str = "workgroup"  # or "subgroup": how the invocations of a workgroup add up
    f16: str = "unpack"  # or "native": how f16 weights and caches are read (native needs shader-f16)
    matvec: str = "rows"  # or "lanes": whole rows an invocation, or many lanes along each row
    matmul: str = "rows"  # or "tiled": registers alone, or tiles in workgroup memory
    tiles: int = 512  # workgroups that product_tiled must have before it takes larger tiles
    attention: str = (
        "blocks"  # or "whole": a run of decode's attention in blocks of positions, or at once by a workgroup
    )
    share: str = "none"  # or "subgroup": neighbours hand x round (needs subgroups of eight)
    order: str = "plain"  # or "woven": how the rows of weights lie, chosen when they are loaded
    merged_runs: int = 4  # runs of attention that the output projection merges; 1: always in a dispatch of their own
    trusted: bool = False  # shaders without bounds checks and loop bounds
    lanes: tuple[tuple[str, Lanes], ...] = ()  # of products that were measured: "format columns rows"; or of all: "*"

    def lanes_for(self, format: str, columns: int, rows: int) -> Lanes:
        """How ``product_lanes`` is cut for weights [rows, columns] of a format (``f16``, ``affine4``, …): as measured,
        or by a rule that keeps the order of what was measured for these columns."""
        found = dict(self.lanes)
        key = f"{format} {columns} {rows}"
        if key in found or "*" in found:
            return found.get(key) or found["*"]
        cut = default_lanes(format, columns, rows)
        for other, measured in self.lanes:
            if other.rsplit(" ", 1)[0] == f"{format} {columns}":
                team = measured.lanes
                return replace(cut, lanes=team, wide=measured.wide, workgroup=max(cut.workgroup, 4 * team // cut.rows))
        return cut


def default_lanes(format: str, columns: int, rows: int) -> Lanes:
    """A rule for GPUs: long rows are shared by more lanes; many rows are taken several at a time, which saves loads."""
    many = rows >= 8192
    return Lanes(
        lanes=32 if columns < 6144 else 128,
        wide=True,
        rows=(2 if format in ("f32", "f16", "bf16") else 4) if many else 2 if columns >= 6144 else 1,
        ahead=4,
        workgroup=128 if columns < 6144 else 256,
    )


def default_tuning(kind: str, features: frozenset[str], subgroup_size: int) -> Tuning:
    """The built-in choice: software adapters have no lanes to share work, GPUs have.

    Args:
        subgroup_size: as counted on the device; 0 where it was not.
    """
    if kind == "software":
        # Trusted: measured 1.1 to 3 times as fast here. Indices read from data are the host's, checked or clamped, and
        # these drivers mask accesses outside a binding by themselves.
        return Tuning(share="subgroup" if subgroup_size == 8 else "none", order="woven", merged_runs=1, trusted=True)
    return Tuning(
        reduce="subgroup" if SUBGROUP in features else "workgroup",
        f16="native" if SHADER_F16 in features else "unpack",
        matvec="lanes",
        matmul="tiled",
        attention="whole",
    )


# Cuts of product_lanes that together take every way through it.
_CUTS = (Lanes(32, False, 4, 2, 128, 2), Lanes(64, True, 2, 1, 256, 1), Lanes(128, True, 4, 4, 256, 1))


def variants(features: frozenset[str], subgroup_size: int) -> list[Tuning]:
    """Tunings that between them cover every linked combination the device can run, the default first."""
    out = [Tuning(), Tuning(matvec="lanes", matmul="tiled", attention="whole")]
    if SUBGROUP in features:
        out.append(replace(out[1], reduce="subgroup"))
    if subgroup_size == 8:
        out.append(replace(out[0], share="subgroup"))
    if SHADER_F16 in features:
        out += [replace(t, f16="native") for t in out if t.reduce == "workgroup"]
    out.append(replace(out[0], order="woven"))
    return [*out, *(replace(out[1], lanes=(("*", cut),), tiles=1) for cut in _CUTS)]
