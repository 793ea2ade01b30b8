"""A model's config, tensors and memory needs, from its headers alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from llamagpu.errors import LlamaGPUError
from llamagpu.gpu import Device
from llamagpu.model.cache import held_tokens, kv_bytes, most_tokens
from llamagpu.model.find import find_model, is_hub_id, open_source
from llamagpu.model.forward import ROW_BUCKETS, arena_bytes
from llamagpu.model.hub import hub_headers, is_cached
from llamagpu.model.layout import DTYPES, Layout
from llamagpu.model.model import prepare
from llamagpu.model.sizes import KV_DTYPES, plan_sizes


def inspect_model(model: str | None, revision: str | None, device: Device | None) -> dict[str, Any]:
    """The facts that ``llamagpu inspect`` prints, as JSON values."""
    named = model is not None and is_hub_id(model)
    on_hub = named and not is_cached(str(model), revision)
    source = hub_headers(str(model), revision) if on_hub else open_source(find_model(model, revision))
    prepared = prepare(source)
    layout, c, entries = prepared.layout, prepared.config, source.entries
    contexts = sorted({min(n, c.max_position_embeddings) for n in (512, 2048, 4096, 8192, 32768, 131072)})
    config = json.loads(json.dumps(asdict(c)))
    return {
        "model": str(model) if named else prepared.name,
        "config": config,
        "parameters": layout.parameters,
        "tensors": len(entries),
        "stored": sorted({e.dtype for e in entries.values()}),
        "weight_bytes": {dtype: layout.with_dtype(dtype).nbytes for dtype in DTYPES},
        "contexts": [
            {
                "context": n,
                "kv_bytes": {
                    long: kv_bytes(c, held_tokens(c, n, ROW_BUCKETS[-1]), short) for long, short in KV_DTYPES.items()
                },
                "activation_bytes": arena_bytes(c, min(n, 512), n, fused=True),
            }
            for n in contexts
        ],
        "adapter": None if device is None else _against(layout, device),
        "tensor_list": [{"name": n, "dtype": e.dtype, "shape": list(e.shape)} for n, e in sorted(entries.items())],
    }


def _against(layout: Layout, device: Device) -> dict[str, Any]:
    """The adapter's limits: the most tokens of a cache binding, and the largest context for each dtype."""
    c = layout.config
    largest: dict[str, int] = {}
    for dtype in DTYPES:
        changed = layout.with_dtype(dtype)
        try:
            largest[dtype] = plan_sizes(changed, device, None, "auto", most_context=c.max_position_embeddings).context
        except LlamaGPUError:
            largest[dtype] = 0
    return {
        "name": str(device.adapter),
        "free_bytes": device.ledger.free_bytes(),
        "binding_bytes": device.memory.max_binding,
        "most_tokens": most_tokens(c, device.memory.largest_binding),
        "largest_context": largest,
    }
