"""The memory that a model takes on a device: choosing the context, the cache's dtype and its pool."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from llamagpu.errors import OutOfMemoryError, UsageError, shown
from llamagpu.gpu import Affine, Device
from llamagpu.kernels.kv_write import PAGE
from llamagpu.model.cache import held_tokens, kv_bytes, layer_bytes
from llamagpu.model.forward import HEAD_ROWS, ROW_BUCKETS, arena_bytes, bucket
from llamagpu.model.layout import Layout

log = logging.getLogger("llamagpu")
DEFAULT_CONTEXT = 4096
KV_DTYPES = {"float32": "f32", "float16": "f16"}
_POOLS = (8, 4, 2)  # whole contexts that the cache holds at once, if they take little beside the weights
_POOL_BYTES = 32_000_000


@dataclass(frozen=True)
class Sizes:
    """The memory that a model takes, and its chosen sizes. ``pool`` is the cache's capacity in tokens of all sequences,
    ``rows`` the number of tokens in the largest prefill chunk."""

    context: int
    pool: int
    kv_dtype: str
    rows: int
    weights: int
    kv: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.kv + self.activations


@dataclass(frozen=True)
class _Planner:
    """A layout and a device, and the dtypes chosen for them."""

    layout: Layout
    device: Device
    kv: str
    fused: bool

    def sizes(self, tokens: int, pool: int | None = None) -> Sizes:
        c, rows = self.layout.config, bucket(min(max(tokens, HEAD_ROWS), ROW_BUCKETS[-1]))
        pool = pool or held_tokens(c, tokens, rows)
        activations = arena_bytes(c, rows, tokens, self.fused) + len(c.ropes) * tokens * c.head_dim * 4
        return Sizes(tokens, pool, self.kv, rows, self.layout.nbytes, kv_bytes(c, pool, self.kv), activations)

    def fits(self, tokens: int, pool: int | None = None) -> bool:
        free = self.device.ledger.free_bytes()
        sizes = self.sizes(tokens, pool)
        layer = layer_bytes(self.layout.config, sizes.pool, self.kv)
        return layer <= self.device.memory.largest_binding and (free is None or sizes.total <= free)

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
        pools = (n * one for n in _POOLS if kv_bytes(c, n * one, self.kv) <= allowed)
        return self.sizes(wanted, next((p for p in pools if self.fits(wanted, p)), one))

    def refusal(self, need: Sizes, would: int) -> OutOfMemoryError:
        """The error for sizes that do not fit; its hint names sizes that would."""
        free = self.device.ledger.free_bytes()
        have = "the free memory is unknown" if free is None else f"{free / 1e6:,.1f} MB are free"
        fit = [f"a context of {would} tokens fits"] if would else []
        for dtype in ("float16", "int8", "int4") if not would else ():
            smaller = self.layout.with_dtype(dtype).nbytes
            if smaller < need.weights and smaller + need.kv + need.activations <= (free or 0):
                fit.append(f"with --dtype {dtype} the weights take {smaller / 1e6:,.1f} MB")
        return OutOfMemoryError(
            f"The model does not fit: it needs {need.total / 1e6:,.1f} MB, and {have}.",
            f"Weights {need.weights / 1e6:,.1f} MB, cache for {need.context} tokens {need.kv / 1e6:,.1f} MB, "
            f"activations {need.activations / 1e6:,.1f} MB; "
            f"a binding holds {self.device.memory.max_binding / 1e6:,.1f} MB.",
            f"To make it fit: {', '.join(fit)}." if fit else "Use a smaller model, or an adapter with more memory.",
        )


def kv_format(layout: Layout, kv_dtype: str) -> str:
    """The cache's dtype, ``f16`` or ``f32``: as asked for; ``auto`` is f16 if no weights are wider."""
    narrow = all(m.format == "f16" or isinstance(m.format, Affine) for m in layout.matrices.values())
    return KV_DTYPES.get(kv_dtype) or ("f16" if narrow else "f32")


def plan_sizes(
    layout: Layout,
    device: Device,
    context: int | None,
    kv_dtype: str,
    most_context: int = DEFAULT_CONTEXT,
    fused: bool = True,
    at_once: int = 0,
) -> Sizes:
    """Choose context and cache dtype, and add up their bytes. ``at_once`` is the least capacity of the cache, in tokens
    of all sequences together.

    Raises:
        UsageError: the context is longer than the model's.
        OutOfMemoryError: it does not fit; the message has the numbers, and choices that would fit.
    """
    planner = _Planner(layout, device, kv_format(layout, kv_dtype), fused)
    most = layout.config.max_position_embeddings
    if context is not None and not 1 <= context <= most:
        raise UsageError(f"A context of {shown(context)} tokens is not possible.", f"It must be from 1 to {most}.")
    wanted = min(most, most_context) if context is None else context
    if at_once > wanted:
        if not planner.fits(wanted, at_once):
            raise planner.refusal(planner.sizes(wanted, at_once), 0)
        return planner.sizes(wanted, at_once)
    if planner.fits(wanted):
        return planner.with_pool(wanted)
    would = planner.largest(wanted)
    if would and context is None:
        log.warning("the context is %d tokens: %d do not fit the memory or the binding limit", would, wanted)
        return planner.sizes(would)
    raise planner.refusal(planner.sizes(wanted), would)
