"""Times of a model's products under tunings, for the tuner."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from llamagpu.errors import KernelError
from llamagpu.gpu import Device, Lanes, Plan, Tensor, TunedLanes, Tuning
from llamagpu.gpu.timing import time_plans
from llamagpu.kernels.noise import noise
from llamagpu.kernels.prenorm import prenorm_columns
from llamagpu.kernels.product import normed, plain, product, store
from llamagpu.model.layout import Layout, Matrix
from llamagpu.model.weights import empty_matrix

log = logging.getLogger("llamagpu")
WARM_AGAIN = 0.05  # seconds of work before a measurement on a device that was busy a moment ago
_CHAIN_BYTES = {"software": 24_000_000}  # what a chain reads; 256 MB elsewhere, more than caches hold
_DISPATCHES = 48  # most dispatches of a chain


@dataclass(frozen=True)
class Shape:
    """A kind of weight matrix: one of them, and how many a token is multiplied with. Products with ``normed`` matrices
    scale by a norm."""

    matrix: Matrix
    count: int
    normed: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of one matrix."""
        return self.matrix.nbytes

    def tuned(self, cut: Lanes) -> TunedLanes:
        """A division for this matrix."""
        return TunedLanes(self.matrix.format_name, self.matrix.columns, self.matrix.rows, cut)


def shapes_of(layout: Layout) -> list[Shape]:
    """The kinds of matrices that a token is multiplied with: first in the layers, last the head."""
    used = [(key.role in ("qkv", "gate_up"), m) for key, m in layout.matrices.items() if key.layer is not None]
    groups: dict[tuple[object, ...], list[tuple[bool, Matrix]]] = defaultdict(list)
    for normed_, m in (*used, (True, layout.head)):
        groups[m.rows, m.columns, m.format, normed_].append((normed_, m))
    return [Shape(same[0][1], len(same), same[0][0]) for same in groups.values()]


def copies_of(device: Device, nbytes: int) -> int:
    """Links of a chain that read ``nbytes`` each, so that caches do not hold what the next round reads."""
    most = _CHAIN_BYTES.get(device.adapter.kind, 256_000_000)
    return int(max(1, min(_DISPATCHES, most // nbytes)))


class Products:
    """Times products on a device."""

    def __init__(self, device: Device):
        self._device, self._warm = device, False

    def seconds(
        self, shape: Shape, options: Sequence[Tuning], rows: int, few: bool | None = None
    ) -> dict[Tuning, float]:
        """Seconds of one product under each option that runs here, measured as a chain. ``few``: whether it is a
        matvec, over several copies of the weights; by default, if there is one row."""
        few = rows == 1 if few is None else few
        device, out, columns = self._device, {}, shape.matrix.columns
        copies = copies_of(device, shape.nbytes) if few else 1
        for order in dict.fromkeys(t.order for t in options):
            with device.ledger.tracking() as made:
                weights = [noise(empty_matrix(device, shape.matrix, order == "woven")) for _ in range(copies)]
                wide = prenorm_columns(columns) if shape.normed and few else columns
                x = noise(device.empty((rows, wide)), 1)
                y = device.empty((rows, shape.matrix.rows))
            plans = {}
            for tuning in (t for t in options if t.order == order):
                try:
                    plans[tuning] = self._chain(columns, x, weights, y, tuning, many=not few)
                except KernelError as e:
                    log.info("a variant does not run here: %s", e)
            for tuning, seconds in time_plans(device, plans, 3, warm=WARM_AGAIN if self._warm else 0.5).items():
                out[tuning] = seconds / len(weights)
                plans[tuning].free()
            self._warm = True
            for buffer in made:
                device.free(buffer)
        return out

    def _chain(self, columns: int, x: Tensor, weights: Sequence[Tensor], y: Tensor, tuning: Tuning, many: bool) -> Plan:
        source = normed(x, columns, 1e-5) if x.columns != columns else plain(x)

        def chain() -> None:
            for w in weights:
                product(source, w, None, store(y), many)

        return self._device.record(chain, tuning)
