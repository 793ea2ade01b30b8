"""How attention makes and limits its scores: scale, soft cap, sliding window."""

from __future__ import annotations

from dataclasses import dataclass

from llamagpu.kernels.arguments import Pairs, require

RUN = 256  # positions of one run, which one workgroup of attention_decode takes
BLOCK = 32  # positions of a block of flash attention
REACH = 128  # distances of a relative bias: those beyond it have the bias of the last one


@dataclass(frozen=True)
class Scores:
    """The scores of attention.

    Attributes:
        scale: factor of q · k; None is head_dim^-½.
        cap: a score s becomes cap · tanh(s / cap) (Gemma 2, arXiv:2408.00118); None leaves it.
        window: positions that a query sees, its own included (arXiv:2004.05150); None is all up to its own.
    """

    scale: float | None = None
    cap: float | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        require(self.window is None or self.window >= 1, f"attention: a window of {self.window} sees nothing")

    @property
    def mask(self) -> Pairs:
        """The library that bounds the positions."""
        return (("mask", "causal" if self.window is None else "window"),)

    @property
    def libs(self) -> Pairs:
        """The libraries of mask and cap."""
        return (*self.mask, ("score", "plain" if self.cap is None else "cap"))

    def params(self, head_dim: int) -> dict[str, float]:
        """The uniforms that these libraries and the kernels read."""
        scale = head_dim**-0.5 if self.scale is None else self.scale
        return {"scale": scale, "window": self.window or 0, "cap": self.cap or 0.0}

    def begin(self, position: int) -> int:
        """The first position that a query at ``position`` sees."""
        return 0 if self.window is None else max(0, position + 1 - self.window)

    def splits(self, splits: int) -> int:
        """Runs of decode attention in a grid for sequences of ``splits`` runs: a window touches few of them."""
        return splits if self.window is None else min(splits, -(-(self.window - 1) // RUN) + 1)


PLAIN = Scores()
