"""``plan.json``: what a page must know about a site before it downloads more."""

from __future__ import annotations

from typing import Any

import numpy as np

from llamagpu.browser.recorded import RecordedModel
from llamagpu.browser.shards import Shards
from llamagpu.gpu.adapter import DEFAULT_LIMITS
from llamagpu.kernels.step import DRAW, NO_CUT, PROMPT_BIT, RESULT, ROW, SETTING
from llamagpu.model import Prepared
from llamagpu.model.cache import held_tokens
from llamagpu.text.settings import chat_settings
from llamagpu.version import __version__

Json = dict[str, Any]
FORMAT = 1
# Names of WebGPU's limits, in browsers and in wgpu-native. Every plan keeps within the defaults.
_LIMITS = {
    "maxStorageBuffersPerShaderStage": "max-storage-buffers-per-shader-stage",
    "maxComputeWorkgroupStorageSize": "max-compute-workgroup-storage-size",
    "maxComputeInvocationsPerWorkgroup": "max-compute-invocations-per-workgroup",
    "maxComputeWorkgroupsPerDimension": "max-compute-workgroups-per-dimension",
}


def manifest(prepared: Prepared, recorded: RecordedModel, shards: Shards, title: str) -> Json:
    """The JSON value of ``plan.json``, but for the hashes of files.

    ``buffers`` have the name, the size, and the place of the first content in the shards, one after another; buffers
    without content begin as zeros. ``layouts`` have the 32-bit fields of the structures that host and GPU exchange.
    """
    return {
        "format": FORMAT,
        "generator": f"llamagpu {__version__}",
        "title": title,
        "model": _model(prepared, recorded),
        "memory": _memory(recorded),
        "limits": _limits(recorded),
        "profiles": [
            {
                "name": p.name,
                "file": f"plans/{p.name}.json",
                "features": p.browser_features,
                "software": p.software,
                "subgroupSize": p.subgroup_size,
            }
            for p in recorded.profiles
        ],
        "layouts": {name: _fields(d) for name, d in (("row", ROW), ("draw", DRAW), ("setting", SETTING))}
        | {"result": _fields(RESULT), "noCut": list(NO_CUT), "promptBit": int(PROMPT_BIT)},
        "buffers": [
            {"name": name, "size": b.size} | ({"at": shards.begins[b]} if b in shards.begins else {})
            for b, name in recorded.buffers.items()
        ],
        "shards": shards.files,
    }


def _model(prepared: Prepared, recorded: RecordedModel) -> Json:
    config, sizes = prepared.config, recorded.sizes
    return {
        "name": prepared.name,
        "architecture": config.model_type,
        "parameters": prepared.layout.parameters,
        "vocabSize": config.vocab_size,
        "context": sizes.context,
        "prefillRows": sizes.rows,
        "dtype": " + ".join(sorted({m.format_name for m in prepared.layout.matrices.values()})),
        "cacheDtype": sizes.kv_dtype,
        "eosTokenIds": list(config.eos_token_id),
        "padding": sizes.batch,  # the slot of padding rows
        "keepsPrefix": held_tokens(config, sizes.context, sizes.rows) >= sizes.context,
        "chatSettings": {_camel(k): v for k, v in chat_settings(prepared.source.generation_config()).items()},
    }


def _memory(recorded: RecordedModel) -> dict[str, int]:
    """Bytes of the buffers by purpose, and in all."""
    out: dict[str, int] = {}
    for buffer in recorded.buffers:
        out[buffer.purpose] = out.get(buffer.purpose, 0) + buffer.size
    return out | {"total": sum(out.values())}


def _limits(recorded: RecordedModel) -> dict[str, int]:
    largest = max(b.size for b in recorded.buffers)
    fixed = {name: DEFAULT_LIMITS[native] for name, native in _LIMITS.items()}
    return {"maxStorageBufferBindingSize": largest, "maxBufferSize": largest} | fixed


def _fields(layout: np.dtype[Any]) -> list[list[Any]]:
    """Name, type and number of words of each field."""
    out = []
    for name in layout.names or ():
        field = layout[name]
        out.append([name, {"u": "u32", "f": "f32"}[field.base.kind], field.itemsize // 4])
    return out


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
