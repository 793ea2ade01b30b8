"""The memory that a loaded model takes, by the ledger's purposes: estimated before loading, and as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llamagpu.errors import OutOfMemoryError
from llamagpu.gpu import Capacity, Device

PARAMS = 16_384  # of some eight recorded plans; equal params of a plan's kernels are stored once
STAGING = 4_096  # results of steps on their way to the host


@dataclass(frozen=True)
class Estimate:
    """Bytes by purpose: weights, cache, activations, params of recorded kernels, results on their way to the host, and
    LoRA adapters."""

    weights: int
    kv: int
    activations: int
    params: int
    staging: int
    adapters: int = field(default=0, kw_only=True)

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.kv + self.activations + self.params + self.staging + self.adapters

    def by_purpose(self) -> dict[str, int]:
        """The bytes under the names of the ledger's purposes, and their ``total``. Adapters are there if there are
        some."""
        names = ("weights", "kv", "activations", "params", "staging", "adapters", "total")
        return {name: getattr(self, name) for name in names if name != "adapters" or self.adapters}

    def fits(self, capacity: Capacity) -> bool:
        """Whether all of it fits the free memory, as far as that is known."""
        return capacity.free is None or self.total <= capacity.free

    def refusal(self, capacity: Capacity, cache: str, largest: int, changes: Sequence[str]) -> TooLargeError:
        """The error if it does not fit.

        Args:
            cache: what the cache holds, in words.
            largest: bytes of the largest single binding.
            changes: each alone makes it fit, in words.
        """
        have = "the free memory is not known" if capacity.free is None else f"{capacity.free / 1e6:,.1f} MB are free"
        why = (
            f"Weights {self.weights / 1e6:,.1f} MB, cache for {cache} {self.kv / 1e6:,.1f} MB, "
            f"activations {self.activations / 1e6:,.1f} MB."
        )
        if self.adapters:
            why += f" LoRA adapters {self.adapters / 1e6:,.1f} MB."
        if largest > capacity.binding:
            why += f" A buffer of {largest / 1e6:,.1f} MB exceeds a binding, which holds {capacity.binding / 1e6:,.1f}."
        return TooLargeError(
            f"The model does not fit: it needs {self.total / 1e6:,.1f} MB on {capacity.name}, and {have}.",
            why,
            f"To make it fit: {', or '.join(changes)}."
            if changes
            else "Use a smaller model, or an adapter with more memory.",
            self,
        )


class TooLargeError(OutOfMemoryError):
    """A model does not fit; ``need`` has the bytes, if it was not unpickled."""

    def __init__(self, what: str, why: str = "", hint: str = "", need: Estimate | None = None):
        super().__init__(what, why, hint)
        self.need = need


@dataclass(frozen=True)
class MemoryUse:
    """The memory of a loaded model's device.

    Attributes:
        held: bytes by purpose, of everything on the device: other models too, if they share it.
        total: their sum.
        estimate: the bytes that this model was expected to take, by purpose, and their ``total``.
        limit: the most bytes that buffers on the device may take together; None if nothing bounds them.
        peak: the largest total so far.
    """

    held: dict[str, int]
    total: int
    estimate: dict[str, int]
    limit: int | None
    peak: int

    @classmethod
    def of(cls, device: Device, estimate: Estimate) -> MemoryUse:
        """The memory now."""
        ledger = device.ledger
        held = ledger.by_purpose()
        return cls(held, sum(held.values()), estimate.by_purpose(), ledger.limit, ledger.peak)
