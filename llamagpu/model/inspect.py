"""What a model is and what it would take, from its config and headers alone."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llamagpu.errors import LlamaGPUError, ModelNotFoundError
from llamagpu.gpu import Device
from llamagpu.kernels import PAGE, cache_columns
from llamagpu.model.cache import kv_bytes
from llamagpu.model.checkpoint import Checkpoint, Entry
from llamagpu.model.config import load_config
from llamagpu.model.elsewhere import HUB_TIMEOUT_S, asking_hub
from llamagpu.model.forward import arena_bytes
from llamagpu.model.layout import DTYPES, Layout
from llamagpu.model.model import Prepared, find_model, is_hub_id, plan_sizes, prepare


def prepare_hub_headers(model: str, revision: str | None) -> Prepared:
    """A hub model's config and tensor headers, fetched by range requests.

    Raises:
        ModelNotFoundError: the hub cannot be reached, or has no such model.
    """
    import huggingface_hub

    try:
        with tempfile.TemporaryDirectory() as folder, asking_hub(model):
            # Its other functions would try again for half a minute, silently, where the hub cannot be reached.
            huggingface_hub.model_info(model, revision=revision, timeout=HUB_TIMEOUT_S)
            for name in ("config.json", "generation_config.json"):
                try:
                    path = huggingface_hub.hf_hub_download(model, name, revision=revision)
                    (Path(folder) / name).write_bytes(Path(path).read_bytes())
                except huggingface_hub.errors.LocalEntryNotFoundError:
                    raise  # the hub was not reached
                except huggingface_hub.errors.EntryNotFoundError:
                    continue
            config = load_config(Path(folder))
        metadata = huggingface_hub.get_safetensors_metadata(model, revision=revision)
    except LlamaGPUError:
        raise
    except Exception as e:  # the hub's errors have many roots
        why = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise ModelNotFoundError(
            f"The headers of {model} could not be read from the hub.", why, "Check the name and the network."
        ) from None
    entries = {}
    for file, part in metadata.files_metadata.items():
        for name, t in part.tensors.items():
            begin, end = t.data_offsets
            entries[name] = Entry(Path(file), t.dtype, tuple(t.shape), begin, end)
    return Prepared(Path(model), config, Layout(config, Checkpoint(entries)))


def inspect_model(model: str | None, revision: str | None, device: Device | None) -> dict[str, Any]:
    """The facts that ``llamagpu inspect`` prints, as JSON can hold them."""
    if model is not None and is_hub_id(model):
        prepared = prepare_hub_headers(model, revision)
    else:
        prepared = prepare(find_model(model, revision))
    layout, c = prepared.layout, prepared.config
    entries = layout.checkpoint.entries
    contexts = sorted({min(n, c.max_position_embeddings) for n in (512, 2048, 4096, 8192, 32768, 131072)})
    return {
        "model": prepared.directory.name,
        "config": json.loads(json.dumps(asdict(c))),
        "parameters": layout.parameters,
        "tensors": len(entries),
        "stored": sorted({e.dtype for e in entries.values()}),
        "weight_bytes": {dtype: layout.with_dtype(dtype) for dtype in DTYPES},
        "contexts": [
            {
                "context": n,
                "kv_bytes": {"float32": kv_bytes(c, n, "f32"), "float16": kv_bytes(c, n, "f16")},
                "activation_bytes": arena_bytes(c, min(n, 512), n, fused=True),
            }
            for n in contexts
        ],
        "adapter": None if device is None else _against(prepared, device),
        "tensor_list": [{"name": n, "dtype": e.dtype, "shape": list(e.shape)} for n, e in sorted(entries.items())],
    }


def _against(prepared: Prepared, device: Device) -> dict[str, Any]:
    """What fits the adapter: the most tokens of a cache binding, and the largest context for each dtype."""
    c, layout = prepared.config, prepared.layout
    page = cache_columns(c.num_key_value_heads, c.head_dim) * 4
    largest: dict[str, int] = {}
    for dtype in DTYPES:
        changed = Layout(c, layout.checkpoint, dtype)
        try:
            largest[dtype] = plan_sizes(changed, device, None, "auto", most_context=c.max_position_embeddings).context
        except LlamaGPUError:
            largest[dtype] = 0
    return {
        "name": str(device.adapter),
        "free_bytes": device.ledger.free_bytes(),
        "binding_bytes": device.max_binding,
        "most_tokens": (min(device.max_binding, device.max_buffer) // page - 1) * PAGE,
        "largest_context": largest,
    }
