"""A model's config, tensors and memory needs, from its headers alone."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from typing import Any

from llamagpu.errors import OutOfMemoryError
from llamagpu.gpu import Capacity, Device, device_capacity
from llamagpu.model.cache import held_tokens, kv_bytes, most_tokens
from llamagpu.model.encoder_config import is_encoder, parse_encoder
from llamagpu.model.encoder_layout import EncoderLayout
from llamagpu.model.encoder_sizes import plan_encoder
from llamagpu.model.estimate import TooLargeError
from llamagpu.model.find import find_model, is_hub_id, open_source
from llamagpu.model.fit import CLASSIFIERS, Load
from llamagpu.model.forward import ROW_BUCKETS, arena_bytes
from llamagpu.model.hub import hub_headers, is_cached
from llamagpu.model.layout import DTYPES, Layout
from llamagpu.model.model import prepare
from llamagpu.model.sizes import KV_DTYPES, plan_sizes
from llamagpu.model.sources import Source

_UNBOUNDED = Capacity("any adapter", "other", None, sys.maxsize, woven=False)


def inspect_model(
    model: str | None, revision: str | None, device: Device | None, load: Load | None = None
) -> dict[str, Any]:
    """The facts that ``llamagpu inspect`` prints, as JSON values.

    Args:
        device: what the needs are compared with; None if there is none.
        load: how the model would be loaded, for the ``estimate``.
    """
    named = model is not None and is_hub_id(model)
    on_hub = named and not is_cached(str(model), revision)
    source = hub_headers(str(model), revision) if on_hub else open_source(find_model(model, revision))
    capacity = _UNBOUNDED if device is None else device_capacity(device)
    bare = replace(_UNBOUNDED, kind=capacity.kind, woven=capacity.woven)
    facts = (_encoder if is_encoder(source.config()) else _decoder)(source, capacity)
    against = {key: facts.pop(key) for key in ("most_tokens", "largest_context")}
    against |= {"name": capacity.name, "free_bytes": capacity.free, "binding_bytes": capacity.binding}
    entries = source.entries
    return {
        "model": str(model) if named else source.name,
        **facts,
        "tensors": len(entries),
        "stored": sorted({e.dtype for e in entries.values()}),
        "weight_bytes": {dtype: Load(dtype=dtype).plan(source)(bare).weights for dtype in DTYPES},
        **_estimated(load or Load(), source, capacity),
        "adapter": None if device is None else against,
        "tensor_list": [{"name": n, "dtype": e.dtype, "shape": list(e.shape)} for n, e in sorted(entries.items())],
    }


def _estimated(load: Load, source: Source, capacity: Capacity) -> dict[str, Any]:
    """The bytes by purpose, as they would be loaded; and the reason if they do not fit."""
    try:
        need, refusal = load.plan(source)(capacity), None
    except TooLargeError as e:
        if e.need is None:
            raise
        need, refusal = e.need, {"what": e.what, "why": e.why, "hint": e.hint}
    return {"estimate": asdict(need) | {"total": need.total}, "refusal": refusal}


def _decoder(source: Source, capacity: Capacity) -> dict[str, Any]:
    """What only decoders have: cache and activations by context, and the largest contexts that fit."""
    prepared = prepare(source)
    layout, c = prepared.layout, prepared.config
    contexts = sorted({min(n, c.max_position_embeddings) for n in (512, 2048, 4096, 8192, 32768, 131072)})
    return {
        "config": json.loads(json.dumps(asdict(c))),
        "parameters": layout.parameters,
        "contexts": [
            {
                "context": n,
                "kv_bytes": {
                    long: kv_bytes(c, held_tokens(c, n, ROW_BUCKETS[-1]), short) for long, short in KV_DTYPES.items()
                },
                "activation_bytes": arena_bytes(c, min(n, ROW_BUCKETS[-1]), n, fused=True),
            }
            for n in contexts
        ],
        "most_tokens": most_tokens(c, capacity.binding),
        "largest_context": {dtype: _largest(layout.with_dtype(dtype), capacity) for dtype in DTYPES},
    }


def _largest(layout: Layout, capacity: Capacity) -> int:
    """The largest context that fits; 0 if none does."""
    most = layout.config.max_position_embeddings
    try:
        return plan_sizes(layout, capacity, None, "auto", most_context=most).context
    except OutOfMemoryError:
        return 0


def _encoder(source: Source, capacity: Capacity) -> dict[str, Any]:
    """What only encoders have: whether their longest texts fit."""
    config = parse_encoder(source.config())
    layout = EncoderLayout(config, source, "auto", CLASSIFIERS)

    def longest(dtype: str) -> int:
        try:
            return plan_encoder(layout.with_dtype(dtype), capacity).longest
        except OutOfMemoryError:
            return 0

    largest = {dtype: longest(dtype) for dtype in DTYPES}
    return {
        "config": asdict(config),
        "parameters": layout.parameters,
        "contexts": [],
        "most_tokens": None,
        "largest_context": largest,
    }
