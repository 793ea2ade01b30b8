"""Choosing kernel variants by measuring them on the adapter at hand, for the matrices of the model at hand."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from llamagpu.errors import KernelError
from llamagpu.gpu import Affine, Device, Lanes, Plan, Tensor, Tuning, default_tuning, store_tuning, variants
from llamagpu.gpu.timing import time_plans
from llamagpu.kernels import REGISTRY, check, noise, normed, plain, product, store, stream_columns
from llamagpu.kernels.product import MAX_COLUMNS
from llamagpu.model.layout import Layout

log = logging.getLogger("llamagpu")
GAIN = 0.97  # of the time: what shaders without bounds checks must reach to be taken
_MANY = {"software": 64}  # rows of x that matmul is measured with; elsewhere 512
_CHAIN_BYTES = {"software": 24_000_000}  # of weights that a chain goes through; elsewhere more than caches hold
_DISPATCHES = 48  # of a chain at most
_CHECKED = ("matvec", "qkv", "matmul", "attention_decode")
# Cuts of product_lanes that are tried: lanes, workgroup and pieces ahead, each with 1, 2 or 4 rows. More lanes to a
# short row would gain little for one vector and lose much for several.
_SHORT = 6144  # columns
_TEAMS_SHORT = ((32, 128, 4), (32, 256, 2))
_TEAMS_LONG = ((64, 256, 4), (128, 256, 4))

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Shape:
    """A weight matrix of the model, and how many of it a token is multiplied with."""

    rows: int
    columns: int
    format: str | Affine
    count: int
    normed: bool = False  # whether the norm of its vector is part of the product

    @property
    def name(self) -> str:
        """The format as ``Tuning.lanes`` names it."""
        return f"affine{self.format.bits}" if isinstance(self.format, Affine) else self.format

    @property
    def key(self) -> str:
        return f"{self.name} {self.columns} {self.rows}"

    @property
    def bytes(self) -> int:
        """Of the weights, scales and biases included."""
        if isinstance(self.format, Affine):
            return self.rows * self.format.row_bytes(self.columns)
        return self.rows * self.columns * (4 if self.format == "f32" else 2)


def shapes_of(layout: Layout) -> list[Shape]:
    """The different matrices that a token is multiplied with: those of the layers, and last the head."""
    head = "embed" if layout.config.tie_word_embeddings else "head"
    used = {key: m for key, m in layout.matrices.items() if key[0].isdigit()} | {head: layout.matrices[head]}
    counts: dict[tuple[int, int, str | Affine, bool], int] = defaultdict(int)
    for key, m in used.items():
        counts[m.rows, m.columns, m.format, key.endswith(("qkv", "gate_up", head))] += 1
    return [Shape(rows, columns, format, n, normed) for (rows, columns, format, normed), n in counts.items()]


def tune(device: Device, layout: Layout, progress: Progress | None = None) -> Tuning:
    """Measure the variants for a layout's matrices, set ``device.tuning`` to the fastest, and keep it for next time.

    The products of a token and of a prompt are chosen apart. What changes the order of additions is chosen once for a
    format and a number of columns, by the time of all matrices that have them. Shaders without bounds checks are taken
    where they pass the references on this adapter and save 3 % of the time.

    Raises:
        KernelError: no variant runs.
        OSError: it cannot be kept; the device has it all the same.
    """
    device.measured = True
    device.tuning = tuned = tune_shapes(device, shapes_of(layout), progress)
    store_tuning(device.adapter, tuned)
    return tuned


def tune_anyway(device: Device, layout: Layout) -> None:
    """As ``tune``; where the tuning cannot be kept, a warning is logged."""
    try:
        tune(device, layout)
    except OSError as e:
        log.warning("the tuning is not kept: %s", e)


def tune_shapes(device: Device, shapes: Sequence[Shape], progress: Progress | None = None) -> Tuning:
    """The fastest variants for some matrices; nothing is set or kept."""
    before = device.tuning
    try:
        return _Tuner(device, shapes, progress or (lambda line: None)).run()
    finally:
        device.tuning = before


def passes(device: Device, tuning: Tuning, kernels: Iterable[str] = _CHECKED) -> bool:
    """Whether the kernels that a variant changes agree with their references on this adapter."""
    before, device.tuning = device.tuning, tuning
    try:
        return all(check(REGISTRY[k], device, dims).ok for k in kernels for dims in REGISTRY[k].cases[1:3])
    except KernelError:
        return False
    finally:
        device.tuning = before


class _Tuner:
    def __init__(self, device: Device, shapes: Sequence[Shape], progress: Progress):
        self._device, self._shapes, self._progress = device, shapes, progress
        self._soft = device.adapter.kind == "software"
        self._warm = False

    def run(self) -> Tuning:
        """Kinds of products with shaders that are trusted, how they are cut, the products of prompts, and trust."""
        self._start = time.perf_counter()
        first, last, prompts = self._shapes[0], self._shapes[-1], self._shapes[:-1] or self._shapes
        chosen = self._fastest("a token", self._kinds(), 1, self._shapes if self._soft else (first, last))
        if chosen.matvec == "lanes":
            chosen = replace(chosen, lanes=self._cuts(chosen))
        if not self._soft:
            tiled = [replace(chosen, matmul="tiled", tiles=n) for n in (1, 256, 512, 1024, 1 << 30)]
            chosen = self._fastest("a prompt", tiled, self._many, prompts)  # of whose head one row is needed
        checked = replace(chosen, trusted=False)
        times = [self._seconds([checked, chosen], m, (first, last)) for m in (1, self._many)]
        gains = [t[chosen] < GAIN * t[checked] for t in times if len(t) == 2]
        trust = any(gains) and self._trusts(chosen)
        self._say(f"without bounds checks: {'faster, and right' if trust else 'not taken'}")
        return chosen if trust else checked

    def _trusts(self, chosen: Tuning) -> bool:
        """Whether the kernels are right without bounds checks, every cut that was chosen among them."""
        cuts = [replace(chosen, lanes=(("*", cut),)) for cut in dict.fromkeys(cut for _, cut in chosen.lanes)]
        return passes(self._device, chosen) and all(passes(self._device, t, ("matvec",)) for t in cuts)

    def _say(self, line: str) -> None:
        self._progress(f"{time.perf_counter() - self._start:5.1f} s  {line}")

    def _kinds(self) -> list[Tuning]:
        """The built-in tuning with each way to make products of few vectors that this kind of adapter is good for."""
        device = self._device
        base = replace(default_tuning(device.adapter.kind, device.features, device.subgroup_size), trusted=True)
        halves = any(s.format == "f16" for s in self._shapes)
        found: dict[Tuning, None] = {}
        for t in variants(device.features, device.subgroup_size):
            for order in ("plain", "woven") if self._soft else ("plain",):
                if t.matvec == base.matvec:
                    f16 = t.f16 if halves and self._soft else base.f16
                    found[replace(base, reduce=t.reduce, f16=f16, share=t.share, order=order)] = None
        return list(found)

    @property
    def _many(self) -> int:
        return _MANY.get(self._device.adapter.kind, 512)

    def _fastest(self, what: str, options: Sequence[Tuning], rows: int, shapes: Sequence[Shape]) -> Tuning:
        """The option with the least time for the products of ``rows`` vectors."""
        times = self._seconds(options, rows, shapes)
        if not times:
            raise KernelError("No variant of the products runs on this adapter.")
        for tuning, seconds in sorted(times.items(), key=lambda item: item[1]):
            self._say(f"{what}: {seconds * 1e3:9.3f} ms  {difference(tuning, options)}")
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

    def _cuts(self, base: Tuning) -> tuple[tuple[str, Lanes], ...]:
        """How product_lanes is cut for every shape."""
        found: dict[tuple[str, int], dict[Shape, dict[Lanes, float]]] = defaultdict(dict)
        for shape in self._shapes:
            cuts = cuts_for(shape.columns)
            options = {replace(base, lanes=((shape.key, cut),)): cut for cut in cuts}
            times = self._measure(shape, list(options), 1)
            found[shape.name, shape.columns][shape] = {options[t]: s for t, s in times.items()}
        out = []
        for (name, columns), measured in found.items():
            cuts = cuts_for(columns)
            totals = {
                order: sum(s.count * min(t for c, t in of.items() if c.order == order) for s, of in measured.items())
                for order in {c.order for c in cuts}
                if all(any(c.order == order for c in of) for of in measured.values())
            }
            best = min(totals, key=lambda o: totals[o])
            for shape, of in measured.items():
                cut = min((c for c in of if c.order == best), key=lambda c: of[c])
                out.append((shape.key, cut))
                speed = shape.bytes / of[cut]
                self._progress(
                    f"{name} {shape.rows} × {columns}: {of[cut] * 1e6:8.1f} µs, {speed / 1e9:7.1f} GB/s  {cut}"
                )
        return tuple(out)

    def _measure(self, shape: Shape, options: Sequence[Tuning], rows: int) -> dict[Tuning, float]:
        """Seconds of one product under each option; a chain of them goes through several copies of the weights."""
        device, out = self._device, {}
        most = _CHAIN_BYTES.get(device.adapter.kind, 256_000_000)
        copies = int(max(1, min(_DISPATCHES, (most if rows == 1 else 0) // shape.bytes)))
        for order in dict.fromkeys(t.order for t in options):
            with device.ledger.tracking() as made:
                weights = [make_weights(device, shape, order == "woven") for _ in range(copies)]
                wide = stream_columns(shape.columns) if shape.normed and rows == 1 else shape.columns
                x = noise(device.empty((rows, wide)), 1)
                y = device.empty((rows, shape.rows))
            plans = {}
            for tuning in (t for t in options if t.order == order):
                device.tuning = tuning
                try:
                    plans[tuning] = self._chain(shape, x, weights, y)
                except KernelError as e:
                    log.info("a variant does not run here: %s", e)
            for tuning, seconds in time_plans(device, plans, 3, warm=0.05 if self._warm else 0.5).items():
                out[tuning] = seconds / len(weights)
                plans[tuning].free()
            self._warm = True
            for buffer in made:
                device.free(buffer)
        return out

    def _chain(self, shape: Shape, x: Tensor, weights: Sequence[Tensor], y: Tensor) -> Plan:
        source = normed(x, shape.columns, 1e-5) if x.columns != shape.columns else plain(x)

        def chain() -> None:
            for w in weights:
                product(source, w, None, store(y), x.rows > MAX_COLUMNS)

        return self._device.record(chain)


def cuts_for(columns: int) -> list[Lanes]:
    """The cuts of product_lanes that are tried for rows of so many columns."""
    teams = _TEAMS_SHORT if columns < _SHORT else _TEAMS_LONG
    cuts = (Lanes(lanes, True, rows, ahead, workgroup) for lanes, workgroup, ahead in teams for rows in (1, 2, 4))
    return [c for c in cuts if c.workgroup // c.lanes * c.rows % 4 == 0]


def difference(tuning: Tuning, others: Sequence[Tuning]) -> str:
    """The fields in which a tuning differs from others, in a line."""
    fields = vars(tuning)
    return ", ".join(f"{k}={v}" for k, v in fields.items() if any(getattr(t, k) != v for t in others)) or "the only one"


def make_weights(device: Device, shape: Shape, woven: bool) -> Tensor:
    """Random weights of a shape."""
    if isinstance(shape.format, Affine):
        return noise(device.empty_affine(shape.rows, shape.columns, shape.format, woven=woven))
    return noise(device.empty((shape.rows, shape.columns), shape.format, purpose="weights", woven=woven))
