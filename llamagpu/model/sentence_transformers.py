"""What sentence-transformers keeps beside an encoder: pooling, dense layers, normalization, prompts and limits.

The files and their keys are those that the package writes (``modules.json`` and the folders that it names).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.errors import UnsupportedModelError, UsageError, shown
from llamagpu.kernels.pool import MODES
from llamagpu.model.sources.safetensors import load_json, load_objects, open_checkpoint

log = logging.getLogger("llamagpu")
Floats = npt.NDArray[np.float32]
_OLDER_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "last",
}
_NAMES = {"lasttoken": "last", "mean_sqrt_len_tokens": "mean_sqrt_len"}


@dataclass(frozen=True)
class Dense:
    """A dense layer after the pooling. weight [out, in]; bias [out]; ``tanh`` or no activation."""

    weight: Floats
    bias: Floats | None
    tanh: bool

    def __call__(self, x: Floats) -> Floats:
        """The layer's output for vectors [n, in], one by one: the bits of a product of matrices depend on n."""
        y = np.stack([self.weight @ v for v in x]) if len(x) else np.empty((0, len(self.weight)), np.float32)
        y = y if self.bias is None else y + self.bias
        return np.asarray(np.tanh(y) if self.tanh else y, np.float32)


@dataclass(frozen=True)
class Pipeline:
    """What turns token vectors into a text's vector, and how texts are prepared.

    Attributes:
        pooling: modes of ``kernels.pool``, whose results are concatenated.
        steps: dense layers (``Dense``) and normalizations (None), in order.
        max_length: tokens of a text, special ones included; longer texts are cut.
        prompts: texts by name that are put before a text.
        similarity: cosine, dot, euclidean or manhattan.
    """

    pooling: tuple[str, ...] = ("mean",)
    steps: tuple[Dense | None, ...] = ()
    max_length: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str = "cosine"

    def finish(self, pooled: Floats) -> Floats:
        """Vectors [n, dimension] from pooled ones [n, hidden]."""
        for step in self.steps:
            pooled = normalized(pooled) if step is None else step(pooled)
        return pooled


def normalized(vectors: Floats) -> Floats:
    """The vectors divided by their lengths; a zero vector stays (torch's ``normalize`` with eps 1e-12)."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)


def read_pipeline(directory: Path, pooling: str | None = None, default: str | None = None) -> Pipeline:
    """The pipeline of a model's directory.

    Args:
        pooling: a mode of ``kernels.pool``, in place of the model's own.
        default: the mode of a model without ``modules.json``.

    Raises:
        UsageError: no pooling is given, and the model has none; or it is not known.
        UnsupportedModelError: a module or a value is not supported; it is named.
    """
    if pooling is not None and pooling not in MODES:
        raise UsageError(f"The pooling {shown(pooling)} is not known.", f"It is one of {', '.join(MODES)}.")
    config = _optional(directory / "config_sentence_transformers.json")
    limits = _optional(directory / "sentence_bert_config.json")
    prompts = {k: v for k, v in (config.get("prompts") or {}).items() if isinstance(v, str)}
    common = Pipeline(
        max_length=limits.get("max_seq_length"),
        lower_case=bool(limits.get("do_lower_case")),
        prompts=prompts,
        default_prompt=config.get("default_prompt_name"),
        similarity=config.get("similarity_fn_name") or "cosine",
    )
    path = directory / "modules.json"
    if not path.exists():
        return replace(common, pooling=(pooling or _default(default, directory.name),))
    found, steps = None, list[Dense | None]()
    for module in load_objects(path):
        kind, folder = str(module.get("type", "")).rpartition(".")[2], directory / str(module.get("path", ""))
        if kind == "Pooling" and found is None:
            found = (pooling,) if pooling else _pooling(load_json(folder / "config.json"))
        elif kind == "Dense" and found is not None:
            steps.append(_dense(folder))
        elif kind == "Normalize" and found is not None:
            steps.append(None)
        elif kind != "Transformer":
            raise _unsupported(f"The module {shown(kind)} of modules.json", "Transformer, Pooling, Dense, Normalize")
    if found is None:
        raise _unsupported("A modules.json without Pooling", "models that give one vector for a text")
    return replace(common, pooling=found, steps=tuple(steps))


def _default(mode: str | None, name: str) -> str:
    """The pooling of a model without ``modules.json``."""
    if mode is None:
        raise UsageError(
            f"{name} does not say how it embeds texts.",
            "It has no modules.json of sentence-transformers, so no pooling is known.",
            f'Choose an embedding model, or give pooling, such as "mean" or "last" (of {", ".join(MODES)}).',
        )
    log.warning("%s has no modules.json: texts are pooled by their %s", name, mode)
    return mode


def _optional(path: Path) -> dict[str, Any]:
    return load_json(path) if path.exists() else {}


def _pooling(config: Mapping[str, Any]) -> tuple[str, ...]:
    if config.get("include_prompt") is False:
        raise _unsupported("Pooling without the prompt (include_prompt)", "pooling of all tokens")
    named = config.get("pooling_mode")
    modes = [named] if isinstance(named, str) else [m for key, m in _OLDER_MODES.items() if config.get(key)]
    modes = [_NAMES.get(mode, mode) for mode in modes]
    if not modes or any(mode not in MODES for mode in modes):
        raise _unsupported(f"The pooling {shown(modes)}", ", ".join(MODES))
    return tuple(modes)


def _dense(folder: Path) -> Dense:
    config = load_json(folder / "config.json")
    activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in ("Tanh", "Identity"):
        raise _unsupported(f"The activation {activation} of {folder.name}", "Tanh, Identity")
    checkpoint = open_checkpoint(folder)
    tensors = {n: np.array(checkpoint.read(n), np.float32) for n in checkpoint.entries if checkpoint.dtype(n) != "bf16"}
    if "linear.weight" not in tensors:
        raise _unsupported(
            f"The dense layer {folder.name} without linear.weight in float32 or float16", "those with it"
        )
    return Dense(tensors["linear.weight"], tensors.get("linear.bias"), activation == "Tanh")


def _unsupported(what: str, known: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{what} is not supported.", f"Supported: {known}.", "Choose another model.")
