"""The tunings that a site carries; the page takes the first one that its adapter can run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llamagpu.gpu import Lanes, Tuning, default_tuning
from llamagpu.gpu.tuning import SHADER_F16, SUBGROUP

# wgpu-native calls the feature "subgroup".
_BROWSER_NAMES = {SUBGROUP: "subgroups"}


@dataclass(frozen=True)
class Profile:
    """A tuning, and the adapters that it is for.

    Attributes:
        features: WebGPU features that it needs, by wgpu-native's names.
        software: whether it is for software adapters alone, which report themselves as fallback adapters.
        subgroup_size: the only size of a subgroup that it takes; 0 is any.
    """

    name: str
    tuning: Tuning
    features: frozenset[str] = frozenset()
    software: bool = False
    subgroup_size: int = 0

    @property
    def browser_features(self) -> list[str]:
        """The features by the names of the WebGPU specification."""
        return sorted(_BROWSER_NAMES.get(f, f) for f in self.features)


def _for_gpus(name: str, *features: str) -> Profile:
    needed = frozenset(features)
    return Profile(name, default_tuning("discrete", needed, 0), needed)


# Browsers' software adapter, SwiftShader, keeps arrays in memory and runs workgroups on a few threads. Products with
# named registers and no neighbours measured 5 to 7 times as fast there as the ones for Mesa's software adapter. On Mesa
# 25, in Dawn, float weights are faster so too, but not quantized ones; prompts are faster with shared loads.
_LANES = Lanes(1, rows=4, ahead=1, workgroup=16, several=2)
_SWIFTSHADER = Tuning(matvec="lanes", matmul="lanes", all_lanes=_LANES, merged_runs=1)
_MESA = Tuning(share="subgroup", merged_runs=1)


def site_profiles(quantized: bool) -> tuple[Profile, ...]:
    """The profiles of a site, the best first. Weight rows are stored in plain order in all of them, so that they share
    the weights' bytes.

    Args:
        quantized: whether some weights are quantized.
    """
    mesa = _MESA if quantized else replace(_MESA, matvec="lanes", all_lanes=_LANES)
    return (
        Profile("software-8", mesa, frozenset({SUBGROUP}), software=True, subgroup_size=8),
        Profile("software", _SWIFTSHADER, software=True),
        _for_gpus("subgroups-f16", SUBGROUP, SHADER_F16),
        _for_gpus("subgroups", SUBGROUP),
        _for_gpus("f16", SHADER_F16),
        _for_gpus("base"),
    )
