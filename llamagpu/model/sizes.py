"""The memory that a decoder takes on an adapter: choosing the context, the cache's dtype and its pool."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from llamagpu.errors import OutOfMemoryError, UsageError, shown
from llamagpu.gpu import Affine, Capacity, tensor_bytes
from llamagpu.kernels.kv_write import PAGE
from llamagpu.model.cache import SLOTS, held_tokens, kv_bytes, layer_bytes, table_columns
from llamagpu.model.estimate import PARAMS, STAGING, Estimate
from llamagpu.model.families import smaller_models
from llamagpu.model.forward import HEAD_ROWS, ROW_BUCKETS, arena_bytes, arena_shapes, bucket
from llamagpu.model.layout import Layout
from llamagpu.model.lora import Lora
from llamagpu.model.lora_stack import stack_bytes

DEFAULT_CONTEXT = 4096
KV_DTYPES = {"float32": "f32", "float16": "f16"}
_SMALLER = ("float16", "int8", "int4")  # dtypes to propose, the most exact one first
_POOLS = (8, 4, 2)  # whole contexts that the cache holds at once, if they take little beside the weights
_POOL_BYTES = 32_000_000


@dataclass(frozen=True)
class Sizes(Estimate):
    """The memory that a model takes, and its chosen sizes. ``pool`` is the cache's capacity in tokens of all sequences,
    ``rows`` the number of tokens in the largest prefill chunk, ``wanted`` the context that was asked for, ``batch`` the
    most sequences at once."""

    context: int
    wanted: int
    pool: int
    kv_dtype: str
    rows: int
    batch: int = SLOTS


@dataclass(frozen=True)
class _Planner:
    """A layout and a capacity, and what was chosen for them. ``kv_dtype`` is ``auto`` or a long name."""

    layout: Layout
    capacity: Capacity
    kv_dtype: str
    fused: bool
    batch: int
    loras: Collection[Lora] = ()

    @property
    def kv(self) -> str:
        """The cache's dtype, as the GPU layer names it."""
        return kv_format(self.layout, self.kv_dtype)

    def sizes(self, tokens: int, pool: int | None = None) -> Sizes:
        c, rows = self.layout.config, bucket(min(max(tokens, HEAD_ROWS), ROW_BUCKETS[-1]))
        pool = pool or held_tokens(c, tokens, rows)
        rotations = len(c.ropes) * tensor_bytes(tokens, c.head_dim)
        return Sizes(
            weights=self.layout.held(self.capacity.woven),
            kv=kv_bytes(c, pool, self.kv) + tensor_bytes(self.batch + 1, table_columns(tokens)),
            activations=arena_bytes(c, rows, tokens, self.fused, self.batch) + rotations,
            params=PARAMS,
            staging=STAGING,
            adapters=stack_bytes(self.loras, self.batch + 1, rows),
            context=tokens,
            wanted=tokens,
            pool=pool,
            kv_dtype=self.kv,
            rows=rows,
            batch=self.batch,
        )

    def largest_binding(self, sizes: Sizes) -> int:
        """Bytes of the largest tensor that needs one binding: a layer's cache, or activations."""
        c = self.layout.config
        shapes = arena_shapes(c, sizes.rows, sizes.context, self.fused, self.batch)
        tables = (layer_bytes(c, sizes.pool, self.kv), tensor_bytes(sizes.context, c.head_dim))
        return max(*tables, *(tensor_bytes(*shape) for shape in shapes))

    def fits(self, tokens: int, pool: int | None = None) -> bool:
        sizes = self.sizes(tokens, pool)
        return self.largest_binding(sizes) <= self.capacity.binding and sizes.fits(self.capacity)

    def largest(self, wanted: int) -> int:
        """The largest context up to ``wanted`` that fits, in whole pages."""
        low, high = 0, wanted // PAGE
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.fits(middle * PAGE) else (low, middle - 1)
        return low * PAGE

    def with_pool(self, wanted: int) -> Sizes:
        """The sizes for a context, with a pool of several contexts if they take little memory beside the weights."""
        c, allowed = self.layout.config, max(_POOL_BYTES, self.layout.nbytes // 2)
        one = self.sizes(wanted).pool
        pools = (n * one for n in _POOLS if n <= self.batch and kv_bytes(c, n * one, self.kv) <= allowed)
        return self.sizes(wanted, next((p for p in pools if self.fits(wanted, p)), one))

    def refusal(self, wanted: int, pool: int | None = None) -> OutOfMemoryError:
        """The error for a context that does not fit."""
        need = self.sizes(wanted, pool)
        cache = f"{need.context} tokens" if pool is None else f"{pool} tokens of all sequences"
        return need.refusal(self.capacity, cache, self.largest_binding(need), self._changes(need, pool))

    def _changes(self, need: Sizes, pool: int | None) -> list[str]:
        """Changes each of which makes it fit, in words."""
        out = []
        context = 0 if pool else self.largest(need.context)
        if context:
            out.append(f"--context {context}")
        narrow = replace(self, kv_dtype="float16")
        if self.kv == "f32" and narrow.fits(need.context, pool):
            out.append("--kv-dtype float16")
        smaller = [replace(self, layout=self.layout.with_dtype(dtype)) for dtype in _SMALLER]
        smaller = [p for p in smaller if p.layout.nbytes < self.layout.nbytes]
        fitting = next((p for p in smaller if p.fits(need.context, pool)), None)
        if fitting is not None:
            out.append(f"--dtype {fitting.layout.dtype} (weights {fitting.sizes(need.context).weights / 1e6:,.1f} MB)")
        elif smaller and not context and smaller[-1].largest(need.context):
            out.append(f"--dtype int4 with --context {smaller[-1].largest(need.context)}")
        if need.fits(self.capacity):  # a binding is too small, and may be for another model too
            return out
        room = (self.capacity.free or 0) - (need.total - need.weights)
        source, config = self.layout.source, self.layout.config
        return out + smaller_models(source.name, config.model_type, self.layout.parameters, room)


def kv_format(layout: Layout, kv_dtype: str) -> str:
    """The cache's dtype, ``f16`` or ``f32``: as asked for; ``auto`` is f16 if no weights are wider."""
    narrow = all(m.format == "f16" or isinstance(m.format, Affine) for m in layout.matrices.values())
    return KV_DTYPES.get(kv_dtype) or ("f16" if narrow else "f32")


def plan_sizes(
    layout: Layout,
    capacity: Capacity,
    context: int | None,
    kv_dtype: str,
    most_context: int = DEFAULT_CONTEXT,
    fused: bool = True,
    at_once: int = 0,
    batch: int = SLOTS,
    loras: Collection[Lora] = (),
) -> Sizes:
    """Choose context and cache dtype, and add up their bytes. Without a context it is the model's, up to
    ``most_context``, or the largest that fits.

    Args:
        at_once: the least capacity of the cache, in tokens of all sequences together.
        batch: the most sequences at once.
        loras: the adapters that are loaded with the model.

    Raises:
        UsageError: the context is longer than the model's.
        OutOfMemoryError: it does not fit; the message has the numbers, and choices that would fit.
    """
    planner = _Planner(layout, capacity, kv_dtype, fused, batch, loras)
    most = layout.config.max_position_embeddings
    if context is not None and not 1 <= context <= most:
        raise UsageError(f"A context of {shown(context)} tokens is not possible.", f"It must be from 1 to {most}.")
    wanted = min(most, most_context) if context is None else context
    if at_once > wanted:
        if not planner.fits(wanted, at_once):
            raise planner.refusal(wanted, at_once)
        return planner.sizes(wanted, at_once)
    if planner.fits(wanted):
        return planner.with_pool(wanted)
    would = planner.largest(wanted) if context is None else 0
    if would:
        return replace(planner.sizes(would), wanted=wanted)
    raise planner.refusal(wanted)
