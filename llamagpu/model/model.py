"""A loaded model: its files read and checked, its size planned, its tensors on the GPU."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from llamagpu.errors import UsageError
from llamagpu.gpu import Device, Plan, Recorded, Recorder, Tensor, Tuning, WarmUp, device_capacity
from llamagpu.model.cache import PagedCache
from llamagpu.model.config import Config, parse_config
from llamagpu.model.find import find_model, open_source
from llamagpu.model.forward import Forward, make_arena
from llamagpu.model.hub import Fit
from llamagpu.model.layout import DTYPES, FLOATS, Key, Layout
from llamagpu.model.lora import Lora
from llamagpu.model.lora_stack import LoraStack
from llamagpu.model.rope_table import rope_table
from llamagpu.model.sizes import KV_DTYPES, Sizes, plan_sizes
from llamagpu.model.sources import RandomWeights, Source
from llamagpu.model.weights import Progress, Weights, assemble, empty_tensors, fill_random, fill_tensors

log = logging.getLogger("llamagpu")
P = TypeVar("P", bound=Recorded)


@dataclass
class Model:
    """Config, weights, plans and cache of a model on a device, and its chosen sizes."""

    device: Device
    config: Config
    weights: Weights
    forward: Forward[Plan]
    cache: PagedCache
    sizes: Sizes

    @property
    def context(self) -> int:
        """The most tokens of a sequence."""
        return self.sizes.context

    @property
    def loras(self) -> LoraStack:
        """The adapters of the model, at first none."""
        assert self.forward.loras is not None
        return self.forward.loras


@dataclass(frozen=True)
class Prepared:
    """A model's files, read and checked; nothing is on a device yet."""

    source: Source
    config: Config
    layout: Layout

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source.name


def check_dtypes(dtype: Any, kv_dtype: Any) -> tuple[str, str]:
    """Both dtypes by their long names: ``bf16`` becomes ``bfloat16``, ``np.float16`` ``float16``.

    Raises:
        UsageError: a dtype is unknown.
    """
    return _dtype_name(dtype, "dtype", DTYPES), _dtype_name(kv_dtype, "kv_dtype", ("auto", *KV_DTYPES))


def _dtype_name(dtype: Any, option: str, known: tuple[str, ...]) -> str:
    short = {s: long for long, s in FLOATS.items()}
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", None) or getattr(dtype, "name", dtype)
    name = short.get(name, name) if isinstance(name, str) else repr(dtype)
    if name not in known:
        raise UsageError(f"Unknown {option} {dtype!r:.60}.", f"Known: {', '.join(known)}.")
    return name


def prepare(source: Source | Path, dtype: str = "auto", head: bool = True) -> Prepared:
    """Read a source's config and headers, and check them against one another. A path is one of ``find_model``. Without
    ``head``, the matrix that makes logits is left out, and need not be there."""
    if isinstance(source, Path):
        source = open_source(source)
    config = parse_config(source.config(), source.generation_config())
    return Prepared(source, config, Layout(config, source, dtype, head))


def prepare_shape(name: str, dtype: str = "auto") -> Prepared:
    """A named shape (``sources.SHAPES``), to be loaded with random weights."""
    return prepare(RandomWeights(name), dtype)


def prepare_model(
    model: str | Path | None,
    shape: str | None,
    dtype: str = "auto",
    revision: str | None = None,
    fit: Fit | None = None,
) -> Prepared:
    """A checkpoint (see ``find_model``, also for ``fit``), or a named shape.

    Raises:
        UsageError: both are given, or a dtype or shape is unknown.
    """
    if model is not None and shape is not None:
        raise UsageError("--model and --shape exclude one another.", "A shape has random weights.")
    if revision is not None and shape is not None:
        raise UsageError("--revision and --shape exclude one another.", "Only hub ids have revisions.")
    dtype, _ = check_dtypes(dtype, "auto")
    return prepare_shape(shape, dtype) if shape is not None else prepare(find_model(model, revision, fit=fit), dtype)


def load_model(
    prepared: Prepared,
    device: Device,
    tuning: Tuning,
    context: int | None,
    kv_dtype: str,
    progress: Progress | None = None,
    fused: bool = True,
    at_once: int = 0,
    sizes: Sizes | None = None,
    loras: Collection[Lora] = (),
    warm: bool = False,
) -> Model:
    """Put a prepared model on a device.

    Args:
        tuning: for the model's plans and the order of its weight rows; other models on the device may have another.
        fused: the form of the forward pass (``operations``).
        at_once: see ``plan_sizes``.
        sizes: those of an earlier load, in place of a choice.
        loras: adapters that will be added; there must be room for them.
        warm: compile what the first token of a prompt needs (``Forward.first_token``) while the weights are loaded.
    """
    config, layout = prepared.config, prepared.layout
    woven = tuning.order == "woven"
    capacity = replace(device_capacity(device), woven=woven)
    if sizes is None:
        sizes = plan_sizes(layout, capacity, context, kv_dtype, fused=fused, at_once=at_once, loras=loras)
        _report(layout, sizes)
    tensors = empty_tensors(layout, device, woven)
    weights = assemble(layout, tensors)
    forward, cache = make_forward(device, config, weights, sizes, tuning, fused)
    warm_up = WarmUp(device, forward.first_token() if warm and layout.has_head else (), tuning.trusted)
    _fill(layout, tensors, warm_up, progress)
    device.synchronize()
    forward.loras = LoraStack(device, layout, weights, cache.dump + 1, sizes.rows)
    return Model(device, config, weights, forward, cache, sizes)


def _fill(layout: Layout, tensors: dict[Key, Tensor], warm_up: WarmUp, progress: Progress | None) -> None:
    """Give the weights their values, and compile meanwhile what runs first."""

    def advance(done: int, total: int) -> None:
        warm_up.advance(done, total)
        if progress is not None:
            progress(done, total)

    warm_up.advance(0, layout.nbytes)
    if isinstance(layout.source, RandomWeights):
        fill_random(layout, tensors)
    else:
        fill_tensors(layout, tensors, advance)
    warm_up.finish()


def make_forward(
    device: Recorder[P], config: Config, weights: Weights, sizes: Sizes, tuning: Tuning, fused: bool = True
) -> tuple[Forward[P], PagedCache]:
    """The forward pass of a model, and the buffers that it works on, for chosen sizes."""
    s = sizes
    cache = PagedCache(device, config, s.context, s.pool, s.kv_dtype, s.rows, s.batch)
    rotations = {
        rope: device.tensor(rope_table(rope, config.head_dim, s.context), "f32", purpose="activations")
        for rope in config.ropes
    }
    arena = make_arena(device, config, s.rows, s.context, fused, s.batch)
    return Forward(device, config, weights, cache, rotations, arena, tuning, fused), cache


def _report(layout: Layout, sizes: Sizes) -> None:
    """Log what was chosen."""
    if sizes.context < sizes.wanted:
        what = "the context is %d tokens: %d do not fit the memory or the binding limit"
        log.warning(what, sizes.context, sizes.wanted)
    if layout.unquantized:
        log.warning("not quantized, because groups do not divide their rows: %s", ", ".join(layout.unquantized))
    log.info("context %d tokens, cache %s, %.1f MB in all", sizes.context, sizes.kv_dtype, sizes.total / 1e6)
