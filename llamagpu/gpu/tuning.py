"""Which variant of a kernel runs: data with a good default for each kind of adapter."""

from __future__ import annotations

from dataclasses import dataclass, replace

SHADER_F16, SUBGROUP = "shader-f16", "subgroup"


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
    share: str = "none"  # or "subgroup": neighbours hand x round (needs subgroups of eight)
    order: str = "plain"  # or "woven": how the rows of weights lie, chosen when they are loaded
    merged_runs: int = 4  # runs of attention that the output projection merges; 1: always in a dispatch of their own
    trusted: bool = False  # shaders without bounds checks and loop bounds


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
    )


def variants(features: frozenset[str], subgroup_size: int) -> list[Tuning]:
    """Tunings that between them cover every linked combination the device can run, the default first."""
    out = [Tuning(matvec=v, matmul=m) for v, m in (("rows", "rows"), ("lanes", "tiled"))]
    if SUBGROUP in features:
        out.append(replace(out[1], reduce="subgroup"))
    if subgroup_size == 8:
        out.append(replace(out[0], share="subgroup"))
    if SHADER_F16 in features:
        out += [replace(t, f16="native") for t in out if t.reduce == "workgroup"]
    out.append(replace(out[0], order="woven"))
    return out
