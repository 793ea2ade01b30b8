"""A model recorded for browsers, on a symbolic device: its weights, and the plans of every profile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llamagpu.browser.buffers import buffer_names
from llamagpu.browser.plans import Json, PlanWriter
from llamagpu.browser.profiles import Profile, site_profiles
from llamagpu.gpu import Affine, Capacity, Recording, SymbolicDevice
from llamagpu.gpu.adapter import DEFAULT_LIMITS
from llamagpu.gpu.ledger import Buffer
from llamagpu.kernels.scores import RUN
from llamagpu.model import Prepared
from llamagpu.model.forward import ROW_BUCKETS, Forward, split_bucket
from llamagpu.model.model import make_forward
from llamagpu.model.sizes import Sizes, plan_sizes
from llamagpu.model.weights import Progress, load_weights


@dataclass(frozen=True)
class RecordedModel:
    """A model's buffers and plans for one sequence.

    Attributes:
        buffers: the buffers that plans use, in the order of their numbers, and their names.
        profiles: the recorded plans of each profile, as JSON values, the best first.
        shaders: the linked WGSL texts of all plans, by file name.
    """

    sizes: Sizes
    buffers: dict[Buffer, str]
    profiles: dict[Profile, Json]
    shaders: dict[str, str]


def plan_browser_sizes(prepared: Prepared, context: int | None, kv_dtype: str) -> Sizes:
    """The sizes of a model for one sequence in a browser, within WebGPU's default limits.

    Raises:
        UsageError: the context is longer than the model's.
        OutOfMemoryError: the context does not fit a binding.
    """
    binding = DEFAULT_LIMITS["max-storage-buffer-binding-size"]
    capacity = Capacity("a browser with WebGPU's default limits", "other", None, binding, woven=False)
    return plan_sizes(prepared.layout, capacity, context, kv_dtype, batch=1)


def record_model(
    device: SymbolicDevice, prepared: Prepared, sizes: Sizes, progress: Progress | None = None
) -> RecordedModel:
    """Load a model's weights to a device's temporary file, and record its plans in all profiles."""
    weights = load_weights(prepared.layout, device, woven=False, progress=progress)
    profiles = site_profiles(any(isinstance(m.format, Affine) for m in prepared.layout.matrices.values()))
    forward, cache = make_forward(device, prepared.config, weights, sizes, profiles[0].tuning)
    cache.take(sizes.context)  # the only sequence: its slot and pages never change
    recordings = {p: dict(_plans(forward.with_tuning(p.tuning), sizes)) for p in profiles}
    used = {
        part.buffer
        for plans in recordings.values()
        for recording in plans.values()
        for call in recording.calls
        for part in call.bindings.values()
    }
    buffers = {b: name for b, name in buffer_names(forward).items() if b in used}
    numbers, shaders = {b: i for i, b in enumerate(buffers)}, dict[str, str]()
    written = {p: _written(plans, PlanWriter(numbers, shaders)) for p, plans in recordings.items()}
    return RecordedModel(sizes, buffers, written, shaders)


def _written(plans: dict[str, Recording], writer: PlanWriter) -> Json:
    written = {name: writer.plan(recording.calls) for name, recording in plans.items()}
    return writer.tables() | {"plans": written}


def _plans(forward: Forward[Recording], sizes: Sizes) -> Iterator[tuple[str, Recording]]:
    """Every plan of one sequence. ``prefill N`` takes N rows, ``decode K`` up to K positions; the plans that sample
    come without and with penalties and filters."""
    for rows in ROW_BUCKETS:
        if rows <= sizes.rows:
            yield f"prefill {rows}", forward.prefill(rows)
    for plain in (True, False):
        kind = "plain" if plain else "filtered"
        yield f"first {kind}", forward.first(1, plain)
        splits = 1
        while splits <= split_bucket(sizes.context):
            yield f"decode {splits * RUN} {kind}", forward.decode(1, splits * RUN, plain)
            splits *= 2
