"""Choosing kernel variants by measuring them on the adapter, for the matrices of a model."""

from __future__ import annotations

import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from llamagpu.errors import KernelError, OutOfMemoryError
from llamagpu.gpu import Affine, Device, Lanes, Plan, Tensor, TunedLanes, Tuning, default_tuning, variants
from llamagpu.gpu.timing import time_plans
from llamagpu.kernels import REGISTRY, check
from llamagpu.kernels.noise import noise
from llamagpu.kernels.prenorm import prenorm_columns
from llamagpu.kernels.product import normed, plain, product, store
from llamagpu.model.candidates import cuts_for, passes_for
from llamagpu.model.layout import Layout, Matrix
from llamagpu.model.weights import empty_matrix

log = logging.getLogger("llamagpu")
GAIN = 0.97  # shaders without bounds checks are chosen if they take less than this share of the time
_MANY = {"software": 64}  # rows of x in measurements of matmul; 512 elsewhere
_CHAIN_BYTES = {"software": 24_000_000}  # weights that a chain reads; 256 MB elsewhere, more than caches hold
_DISPATCHES = 48  # most dispatches of a chain
# Kernels that no forward pass runs; all others are checked before shaders are trusted.
_NOT_RUN = ("copy", "multiply_add", "noise")
_PRODUCTS = ("matvec", "matmul", "store", "qkv", "residual", "glu")
_SEVERAL = (8, 32)  # vectors for which the block of sums is chosen

Progress = Callable[[str], None]
_Measured = tuple["Shape", dict[Lanes, float]]  # seconds of a matrix under each division


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


def tune(device: Device, layout: Layout, progress: Progress | None = None) -> Tuning:
    """Measure the variants for a layout's matrices; returns the fastest. ``gpu.store_tuning`` keeps it for later runs.

    The variants for decode and for prompts are chosen separately. A choice that changes the order of additions is made
    once for a format and a number of columns, by the total time of the matrices that have them. Shaders without bounds
    checks are chosen if they save 3 % of the time, and every kernel agrees with its reference on this adapter.

    The device's own tuning does not change, so no other model is affected.

    Raises:
        KernelError: no variant runs.
    """
    return tune_shapes(device, shapes_of(layout), progress)


def tune_shapes(device: Device, shapes: Sequence[Shape], progress: Progress | None = None) -> Tuning:
    """As ``tune``, for any matrices; the last one stands for the head."""
    return _Tuner(device, shapes, progress or (lambda line: None)).run()


def passes(device: Device, tuning: Tuning, kernels: Iterable[str]) -> bool:
    """Whether kernels agree with their references on this adapter, with a tuning, in every case that fits its
    memory."""
    for kernel in (REGISTRY[name] for name in kernels):
        for dims in kernel.cases:
            try:
                if not check(kernel, device, dims, tuning=tuning).ok:
                    return False
            except OutOfMemoryError:
                continue
            except KernelError:
                return False
    return True


class _Tuner:
    def __init__(self, device: Device, shapes: Sequence[Shape], progress: Progress):
        self._device, self._shapes, self._progress = device, shapes, progress
        self._soft = device.adapter.kind == "software"
        self._warm = False

    def run(self) -> Tuning:
        """Choose, without bounds checks, the matvec variant, its divisions and the matmul variant; then whether to keep
        the checks."""
        self._start = time.perf_counter()
        first, last, prompts = self._shapes[0], self._shapes[-1], self._shapes[:-1] or self._shapes
        chosen = self._fastest("a token", self._kinds(), 1, self._shapes if self._soft else (first, last))
        if chosen.matvec == "lanes":
            squares = [replace(chosen, squares=s) for s in ("apart", "joined")]
            chosen = self._fastest("a token", squares, 1, (first, last))
            chosen = replace(chosen, lanes=self._cuts(chosen))
            chosen = replace(chosen, lanes=tuple(self._passes(chosen)))
            chosen = replace(chosen, lanes=tuple(self._blocks(chosen)))
        if not self._soft:
            tiled = [replace(chosen, matmul="tiled", tiles=n) for n in (1, 256, 512, 1024, 1 << 30)]
            # Without the head, because a prompt needs only one row of logits.
            chosen = self._fastest("a prompt", tiled, self._many, prompts)
        checked = replace(chosen, trusted=False)
        times = [self._seconds([checked, chosen], m, (first, last)) for m in (1, self._many)]
        gains = [t[chosen] < GAIN * t[checked] for t in times if len(t) == 2]
        trust = any(gains) and self._trusts(chosen)
        self._say(f"without bounds checks: {'faster, and correct' if trust else 'not chosen'}")
        return chosen if trust else checked

    def _trusts(self, chosen: Tuning) -> bool:
        """Whether all kernels that models run are correct without bounds checks, in every chosen division."""
        cuts = [replace(chosen, all_lanes=cut) for cut in dict.fromkeys(t.cut for t in chosen.lanes)]
        run = [name for name in REGISTRY if name not in _NOT_RUN]
        return passes(self._device, chosen, run) and all(passes(self._device, t, _PRODUCTS) for t in cuts)

    def _say(self, line: str) -> None:
        self._progress(f"{time.perf_counter() - self._start:5.1f} s  {line}")

    def _kinds(self) -> list[Tuning]:
        """The built-in tuning with each variant of matvec that suits this kind of adapter."""
        device = self._device
        base = replace(default_tuning(device.adapter.kind, device.features, device.subgroup_size), trusted=True)
        halves = any(s.matrix.format == "f16" for s in self._shapes)
        found: dict[Tuning, None] = {}
        for t in variants(device.features, device.subgroup_size):
            orders = ("plain", "woven") if self._soft else ("plain",)
            for order, words in itertools.product(orders, dict.fromkeys(("u32", t.words))):
                if t.matvec == base.matvec:
                    f16 = t.f16 if halves and self._soft else base.f16
                    kind = replace(base, reduce=t.reduce, f16=f16, share=t.share, words=words, order=order)
                    found |= dict.fromkeys([kind] if self._soft else self._same_bits(kind))
        return list(found)

    def _same_bits(self, kind: Tuning) -> Iterator[Tuning]:
        """A variant for GPUs with each choice that changes no bit."""
        quantized = any(isinstance(s.matrix.format, Affine) for s in self._shapes)
        digits = ("integers", "halves") if quantized else ("integers",)
        for gather, digit in itertools.product(("whole", "transposed"), digits):
            yield replace(kind, gather=gather, digits=digit)

    @property
    def _many(self) -> int:
        return _MANY.get(self._device.adapter.kind, 512)

    def _fastest(self, label: str, options: Sequence[Tuning], rows: int, shapes: Sequence[Shape]) -> Tuning:
        """The option with the least time for the products of ``rows`` vectors."""
        times = self._seconds(options, rows, shapes)
        if not times:
            raise KernelError("No variant of the products runs on this adapter.")
        for tuning, seconds in sorted(times.items(), key=lambda item: item[1]):
            self._say(f"{label}: {seconds * 1e3:9.3f} ms  {difference(tuning, options)}")
        return min(times, key=lambda t: times[t])

    def _seconds(self, options: Sequence[Tuning], rows: int, shapes: Sequence[Shape]) -> dict[Tuning, float]:
        """Seconds of the products of ``rows`` vectors; an option that does not run here is left out."""
        total: dict[Tuning, float] = defaultdict(float)
        ran: dict[Tuning, int] = defaultdict(int)
        for shape in shapes:
            for tuning, seconds in self._measure(shape, options, rows).items():
                total[tuning] += seconds * shape.count
                ran[tuning] += 1
        return {t: s for t, s in total.items() if ran[t] == len(shapes)}

    def _cuts(self, base: Tuning) -> tuple[TunedLanes, ...]:
        """The division of product_lanes for every shape."""
        found: dict[tuple[str, int], list[_Measured]] = defaultdict(list)
        for shape in self._shapes:
            measured = self._measure_cuts(shape, base, cuts_for(shape.matrix.columns))
            found[shape.matrix.format_name, shape.matrix.columns].append((shape, measured))
        return tuple(tuned for (_, columns), group in found.items() for tuned in self._best_cuts(columns, group))

    def _passes(self, base: Tuning) -> Iterator[TunedLanes]:
        """The chosen divisions, with several passes over a vector in registers where these are faster."""
        for shape, tuned in zip(self._tuned_shapes(base), base.lanes, strict=True):
            times = self._measure_cuts(shape, base, [tuned.cut, *passes_for(tuned.cut, tuned.columns)])
            best = min(times, key=lambda cut: times[cut])
            best = best if times[best] < GAIN * times[tuned.cut] else tuned.cut
            self._say(f"{tuned.format} {tuned.rows} × {tuned.columns}: {best.passes} passes of {best.rows} rows")
            yield replace(tuned, cut=best)

    def _measure_cuts(self, shape: Shape, base: Tuning, cuts: Sequence[Lanes]) -> dict[Lanes, float]:
        """Seconds of one product with a single vector in each division that runs."""
        options = {replace(base, all_lanes=cut): cut for cut in cuts}
        return {options[t]: seconds for t, seconds in self._measure(shape, list(options), 1).items()}

    def _blocks(self, base: Tuning) -> Iterator[TunedLanes]:
        """The chosen divisions, with 8 × 8 sums where these are faster for 8 and 32 vectors together."""
        for shape, tuned in zip(self._tuned_shapes(base), base.lanes, strict=True):
            plain, block = (replace(base, all_lanes=replace(tuned.cut, block=n)) for n in (4, 8))
            few, batch = (self._measure(shape, [plain, block], m, few=True) for m in _SEVERAL)
            wins = block in few and block in batch and few[block] + batch[block] < GAIN * (few[plain] + batch[plain])
            self._say(f"{tuned.format} {tuned.rows} × {tuned.columns}: {'8' if wins else '4'} rows for several vectors")
            yield replace(tuned, cut=replace(tuned.cut, block=8 if wins else 4))

    def _tuned_shapes(self, base: Tuning) -> Iterator[Shape]:
        """The shape of each measured division."""
        for tuned in base.lanes:
            yield next(s for s in self._shapes if s.tuned(tuned.cut) == tuned)

    def _best_cuts(self, columns: int, measured: list[_Measured]) -> Iterator[TunedLanes]:
        """The fastest order of additions for the shapes of one format and number of columns, and in it the fastest
        division of each."""
        totals = {
            order: sum(s.count * min(t for c, t in of.items() if c.order == order) for s, of in measured)
            for order in {c.order for c in cuts_for(columns)}
            if all(any(c.order == order for c in of) for _, of in measured)
        }
        best = min(totals, key=lambda o: totals[o])
        for shape, of in measured:
            cut = min((c for c in of if c.order == best), key=lambda c: of[c])
            m, rate = shape.matrix, shape.nbytes / of[cut] / 1e9
            self._progress(f"{m.format_name} {m.rows} × {m.columns}: {of[cut] * 1e6:8.1f} µs, {rate:7.1f} GB/s  {cut}")
            yield shape.tuned(cut)

    def _measure(
        self, shape: Shape, options: Sequence[Tuning], rows: int, few: bool | None = None
    ) -> dict[Tuning, float]:
        """Seconds of one product under each option, measured as a chain. ``few``: whether it is a matvec, over several
        copies of the weights; by default, if there is one row."""
        few = rows == 1 if few is None else few
        device, out, columns = self._device, {}, shape.matrix.columns
        most = _CHAIN_BYTES.get(device.adapter.kind, 256_000_000)
        copies = int(max(1, min(_DISPATCHES, (most if few else 0) // shape.nbytes)))
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
            for tuning, seconds in time_plans(device, plans, 3, warm=0.05 if self._warm else 0.5).items():
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


def difference(tuning: Tuning, others: Sequence[Tuning]) -> str:
    """The fields in which a tuning differs from others, in one line."""
    fields = vars(tuning)
    return ", ".join(f"{k}={v}" for k, v in fields.items() if any(getattr(t, k) != v for t in others)) or "the only one"
