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
from llamagpu.model.config_values import Values
from llamagpu.model.encoder_config import ENCODERS
from llamagpu.model.sources.files import load_config, load_json, load_objects, present
from llamagpu.model.sources.safetensors import Checkpoint, is_name, open_checkpoint

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
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_MOST_MODULES = 16
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
    common = _common(directory)
    path = directory / "modules.json"
    if not present(path):
        return replace(common, pooling=(pooling or _default(default, directory.name),))
    found, steps = None, list[Dense | None]()
    width = 0  # of the vector between the steps
    for module in _modules(path):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling" and found is None:
            found = (pooling,) if pooling else _pooling(load_json(_folder(directory, module) / "config.json"))
            width = len(found) * _hidden_size(directory)
        elif kind == "Dense" and found is not None:
            dense = _dense(_folder(directory, module), width)
            steps.append(dense)
            width = len(dense.weight)
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


def _common(directory: Path) -> Pipeline:
    """What does not depend on the modules, with mean pooling."""
    config = _optional(directory / "config_sentence_transformers.json")
    limits = _optional(directory / "sentence_bert_config.json")
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise _bad("prompts", prompts, "an object of texts by name")
    similarity, default = config.get("similarity_fn_name"), config.get("default_prompt_name")
    if similarity is not None and (not isinstance(similarity, str) or similarity not in _SIMILARITIES):
        raise _bad("similarity_fn_name", similarity, f"one of {', '.join(_SIMILARITIES)}")
    if not isinstance(default, str | None):
        raise _bad("default_prompt_name", default, "the name of a prompt")
    length, lower = limits.get("max_seq_length"), limits.get("do_lower_case")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 3):
        raise _bad("max_seq_length", length, "a whole number of at least 3")
    if not isinstance(lower, bool | None):
        raise _bad("do_lower_case", lower, "true or false")
    return Pipeline(
        max_length=length,
        lower_case=bool(lower),
        prompts={k: v for k, v in prompts.items() if isinstance(v, str)},
        default_prompt=default,
        similarity=similarity or "cosine",
    )


def _modules(path: Path) -> list[dict[str, Any]]:
    modules = load_objects(path)
    if len(modules) > _MOST_MODULES:
        raise _unsupported(f"A modules.json with {len(modules)} modules", f"up to {_MOST_MODULES}")
    return modules


def _folder(directory: Path, module: Mapping[str, Any]) -> Path:
    """A module's folder, which lies in the model's directory."""
    name = module.get("path")
    if not is_name(name):
        raise UnsupportedModelError(
            f"modules.json names {shown(name)}, which is not a folder of this model.", "", "Download the file again."
        )
    return directory / str(name)


def _hidden_size(directory: Path) -> int:
    """The size of a token's vector."""
    raw = load_config(directory)
    row = ENCODERS.get(str(raw.get("model_type")))
    return Values({"hidden_size": raw.get("hidden_size" if row is None else row.keys["hidden_size"])}, {}).integer(
        "hidden_size"
    )


def _optional(path: Path) -> dict[str, Any]:
    return load_json(path) if present(path) else {}


def _pooling(config: Mapping[str, Any]) -> tuple[str, ...]:
    if config.get("include_prompt") is False:
        raise _unsupported("Pooling without the prompt (include_prompt)", "pooling of all tokens")
    named = config.get("pooling_mode")
    modes = [named] if isinstance(named, str) else [m for key, m in _OLDER_MODES.items() if config.get(key)]
    modes = [_NAMES.get(mode, mode) for mode in modes]
    if not modes or any(mode not in MODES for mode in modes):
        raise _unsupported(f"The pooling {shown(modes)}", ", ".join(MODES))
    return tuple(modes)


def _dense(folder: Path, width: int) -> Dense:
    """A dense layer for vectors of ``width`` elements."""
    config = load_json(folder / "config.json")
    activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in ("Tanh", "Identity"):
        raise _unsupported(f"The activation {shown(activation)} of {folder.name}", "Tanh, Identity")
    checkpoint = open_checkpoint(folder)
    if "linear.weight" not in checkpoint.entries:
        raise _unsupported(f"The dense layer {folder.name} without linear.weight", "those with it")
    shape = checkpoint.entries["linear.weight"].shape
    if len(shape) != 2 or shape[1] != width:
        raise _unsupported(
            f"The dense layer {folder.name} of the shape {list(shape)} after {width} elements", "[…, elements]"
        )
    bias = _floats(checkpoint, "linear.bias", shape[:1]) if "linear.bias" in checkpoint.entries else None
    return Dense(_floats(checkpoint, "linear.weight", shape), bias, activation == "Tanh")


def _floats(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Floats:
    """A tensor of a dense layer."""
    found, dtype = checkpoint.entries[name].shape, checkpoint.dtype(name)
    if found != shape or dtype not in ("f32", "f16"):
        raise _unsupported(
            f"The tensor {name} of a dense layer with the shape {list(found)} and dtype {dtype}",
            f"{list(shape)} in f32 or f16",
        )
    return np.array(checkpoint.read(name), np.float32)


def _bad(key: str, value: Any, allowed: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The sentence-transformers config sets {key} to {shown(value)}.",
        f"It must be {allowed}.",
        "Check the file, or download the model again.",
    )


def _unsupported(what: str, known: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{what} is not supported.", f"Supported: {known}.", "Choose another model.")
