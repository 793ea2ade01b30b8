"""Choosing kernel variants by measuring them on the adapter, for the matrices of a model."""

from __future__ import annotations

import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from llamagpu.errors import KernelError, OutOfMemoryError
from llamagpu.gpu import Affine, Device, Lanes, TunedLanes, Tuning, default_tuning, variants
from llamagpu.gpu.tuning import SHADER_F16
from llamagpu.kernels import REGISTRY, check
from llamagpu.kernels.product import MERGED_RUNS
from llamagpu.kernels.scores import RUN
from llamagpu.model.candidates import cuts_for, passes_for
from llamagpu.model.layout import Layout
from llamagpu.model.tuner_attention import DEPTHS, MERGED_DEPTHS, StepAttention
from llamagpu.model.tuner_products import Products, Shape, shapes_of

log = logging.getLogger("llamagpu")
# Shaders without bounds checks, larger blocks of sums, and changes of attention are chosen if they take less than this
# share of the time.
GAIN = 0.97
_MANY = {"software": 64}  # rows of x in measurements of matmul; 512 elsewhere
# Kernels that no forward pass runs; all others are checked before shaders are trusted.
_NOT_RUN = ("copy", "multiply_add", "noise")
_PRODUCTS = ("matvec", "matmul", "store", "qkv", "residual", "glu")
_SEVERAL = (8, 32)  # vectors for which the block of sums is chosen

Progress = Callable[[str], None]
_Measured = tuple[Shape, dict[Lanes, float]]  # seconds of a matrix under each division


def tune(device: Device, layout: Layout, progress: Progress | None = None, seconds: float | None = None) -> Tuning:
    """Measure the variants for a layout's matrices and attention; returns the fastest. ``gpu.store_tuning`` keeps it
    for later runs.

    The variants for decode and for prompts are chosen separately. A choice that changes the order of additions is made
    once: for products by format and number of columns, by the total time of the matrices that have them; for attention
    by steps after few and many tokens. Attention changes if that saves 3 % of the time. So do shaders without bounds
    checks, if every kernel agrees with its reference on this adapter.

    The device's own tuning does not change, so no other model is affected.

    Args:
        seconds: time after which no further choice is measured; the rest stay built in, and ``progress`` names them.

    Raises:
        KernelError: no variant runs.
    """
    return _Tuner(device, shapes_of(layout), progress, seconds, layout).run()


def tune_shapes(
    device: Device, shapes: Sequence[Shape], progress: Progress | None = None, seconds: float | None = None
) -> Tuning:
    """As ``tune``, for the products with any matrices alone; the last one stands for the head."""
    return _Tuner(device, shapes, progress, seconds).run()


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
    def __init__(
        self,
        device: Device,
        shapes: Sequence[Shape],
        progress: Progress | None = None,
        seconds: float | None = None,
        layout: Layout | None = None,
    ):
        self._device, self._shapes, self._layout = device, shapes, layout
        self._progress = progress or (lambda line: None)
        self._soft = device.adapter.kind == "software"
        self._measure = Products(device).seconds
        self._start = time.perf_counter()
        self._end = float("inf") if seconds is None else self._start + seconds

    def run(self) -> Tuning:
        """Choose, without bounds checks, the matvec variant, its divisions, the attention and the matmul variant; then
        whether to keep the checks."""
        first, last, prompts = self._shapes[0], self._shapes[-1], self._shapes[:-1] or self._shapes
        chosen = self._fastest("a token", self._kinds(), 1, self._shapes if self._soft else (first, last))
        if chosen.matvec == "lanes":
            squares = [replace(chosen, squares=s) for s in ("apart", "joined")]
            chosen = self._fastest("a token", squares, 1, (first, last))
            chosen = replace(chosen, lanes=self._cuts(chosen))
            chosen = replace(chosen, lanes=tuple(self._passes(chosen)))
            chosen = replace(chosen, lanes=tuple(self._blocks(chosen)))
        if self._layout is not None:
            chosen = self._attention(chosen, StepAttention(self._device, self._layout))
        if not self._soft and not self._late("prompts"):
            tiled = [replace(chosen, matmul="tiled", tiles=n) for n in (1, 256, 512, 1024, 1 << 30)]
            # Without the head, because a prompt needs only one row of logits.
            chosen = self._fastest("a prompt", tiled, self._many, prompts)
        return replace(chosen, trusted=self._trust(chosen, (first, last)))

    def _trust(self, chosen: Tuning, shapes: Sequence[Shape]) -> bool:
        """Whether to drop the bounds checks."""
        if self._late("bounds checks"):
            return self._built_in.trusted
        checked = replace(chosen, trusted=False)
        times = [self._seconds([checked, chosen], m, shapes) for m in (1, self._many)]
        gains = [t[chosen] < GAIN * t[checked] for t in times if len(t) == 2]
        trust = any(gains) and self._trusts(chosen)
        self._say(f"without bounds checks: {'faster, and correct' if trust else 'not chosen'}")
        return trust

    def _trusts(self, chosen: Tuning) -> bool:
        """Whether all kernels that models run are correct without bounds checks, in every chosen division; as built in,
        if the time is over before that is known."""
        cuts = [replace(chosen, all_lanes=cut) for cut in dict.fromkeys(t.cut for t in chosen.lanes)]
        checks = [(chosen, name) for name in REGISTRY if name not in _NOT_RUN]
        checks += [(tuning, name) for tuning in cuts for name in _PRODUCTS]
        for tuning, name in checks:
            if self._late(f"the check of {name} without bounds checks"):
                return self._built_in.trusted
            if not passes(self._device, tuning, (name,)):
                return False
        return True

    def _late(self, what: str) -> bool:
        """Whether the time is over; then the progress names what is left out."""
        late = time.perf_counter() > self._end
        if late:
            self._say(f"left out: {what}")
        return late

    def _say(self, line: str) -> None:
        self._progress(f"{time.perf_counter() - self._start:5.1f} s  {line}")

    @property
    def _built_in(self) -> Tuning:
        device = self._device
        return default_tuning(device.adapter.kind, device.features, device.subgroup_size)

    def _kinds(self) -> list[Tuning]:
        """The built-in tuning with each variant of matvec that suits this kind of adapter. On software adapters, shared
        loads of x and u64 are not compared: they were faster in every measurement (docs/tuning.md)."""
        device, base = self._device, replace(self._built_in, trusted=True)
        halves = any(s.matrix.format == "f16" for s in self._shapes)
        if self._soft:
            native = SHADER_F16 in device.features and halves
            forms = itertools.product(("unpack", "native") if native else (base.f16,), ("woven", "plain"))
            return [replace(base, f16=f16, order=order) for f16, order in forms]
        found: dict[Tuning, None] = {}
        for t in variants(device.features, device.subgroup_size):
            if t.matvec == base.matvec:
                found |= dict.fromkeys(self._same_bits(replace(base, reduce=t.reduce)))
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

    def _attention(self, base: Tuning, steps: StepAttention) -> Tuning:
        """How decode attention divides a run, and how many runs the output projection merges. Both are chosen for all
        batches: attention changes the order of additions."""
        for field, values, depths in (
            ("attention", ("blocks", "whole"), steps.depths(DEPTHS)),
            ("merged_runs", (1, MERGED_RUNS), steps.depths(MERGED_DEPTHS, RUN)),
        ):
            if not depths or self._late(field):
                continue
            options = [replace(base, **{field: value}) for value in values]  # type: ignore[arg-type]
            try:
                times = steps.seconds(options, depths)
            except KernelError as e:
                log.info("attention keeps its variant, because another does not run here: %s", e)
                continue
            for tuning, seconds in sorted(times.items(), key=lambda item: item[1]):
                self._say(f"attention: {seconds * 1e3:9.3f} ms  {difference(tuning, options)}")
            best = min(times, key=lambda t: times[t])
            base = best if times[best] < GAIN * times[base] else base
        return base

    def _cuts(self, base: Tuning) -> tuple[TunedLanes, ...]:
        """The division of product_lanes for every shape that there is time for."""
        found: dict[tuple[str, int], list[_Measured]] = defaultdict(list)
        for shape in self._shapes:
            if self._late(f"divisions of {shape.matrix.rows} × {shape.matrix.columns}"):
                continue
            measured = self._measure_cuts(shape, base, cuts_for(shape.matrix.columns))
            found[shape.matrix.format_name, shape.matrix.columns].append((shape, measured))
        return tuple(tuned for (_, columns), group in found.items() for tuned in self._best_cuts(columns, group))

    def _passes(self, base: Tuning) -> Iterator[TunedLanes]:
        """The chosen divisions, with several passes over a vector in registers where these are faster."""
        for shape, tuned in zip(self._tuned_shapes(base), base.lanes, strict=True):
            if self._late(f"passes of {tuned.rows} × {tuned.columns}"):
                yield tuned
                continue
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
            if self._late(f"blocks of {tuned.rows} × {tuned.columns}"):
                yield tuned
                continue
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


def difference(tuning: Tuning, others: Sequence[Tuning]) -> str:
    """The fields in which a tuning differs from others, in one line."""
    fields = vars(tuning)
    return ", ".join(f"{k}={v}" for k, v in fields.items() if any(getattr(t, k) != v for t in others)) or "the only one"
