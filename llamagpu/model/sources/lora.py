"""LoRA adapters as PEFT writes them: adapter_config.json and adapter_model.safetensors.

https://huggingface.co/docs/peft/package_reference/lora and ``peft/tuners/lora``. A setting that changes the arithmetic
and is not supported is refused by name.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.errors import ModelNotFoundError, UnsupportedModelError, shown
from llamagpu.gpu import widen_bf16
from llamagpu.model.sources.files import PICKLED, load_json, pickled, present
from llamagpu.model.sources.safetensors import Checkpoint, read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MOST_RANK = 4096
_TENSOR = re.compile(r"base_model\.model\.(?:model\.)?(.+)\.lora_(A|B)\.weight")
_INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")  # others change the base model's weights, too
# Settings of training, or of how the file came about.
_WITHOUT_EFFECT = {
    "alpha_pattern",  # read by ``_Settings``
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",  # the tensors say which layers have changes
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}


@dataclass(frozen=True)
class Pair:
    """The matrices of a change as stored: A [rank, columns] and B [rows, rank], float32, float16 or uint16 with
    bfloat16 bits. The change is ``scale · B A``."""

    a: npt.NDArray[Any]
    b: npt.NDArray[Any]
    scale: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return len(self.a)


@dataclass(frozen=True)
class LoraFile:
    """An adapter's files, read and checked by themselves.

    Attributes:
        pairs: by the module that each changes, as ``layers.0.self_attn.q_proj``.
        model_type: of its base model; None if the files do not say it.
        paired: whether the rows of B have adjacent rotary pairs; otherwise they lie half a head apart.
        expected: the last names of modules that must have a change in every layer.
        digest: a hash of all that results depend on.
    """

    path: Path
    pairs: Mapping[str, Pair]
    model_type: str | None = None
    paired: bool = False
    expected: tuple[str, ...] = ()
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        out = hashlib.sha256()
        for name, pair in sorted(self.pairs.items()):
            out.update(f"{name} {pair.scale!r} {pair.a.dtype} {pair.a.shape} {pair.b.shape} {self.paired}".encode())
            out.update(np.ascontiguousarray(pair.a).data)
            out.update(np.ascontiguousarray(pair.b).data)
        object.__setattr__(self, "digest", out.digest())


def widened(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Stored values as float32, exactly."""
    return widen_bf16(values) if values.dtype == np.uint16 else values.astype(np.float32)


def refused(path: Path, why: str, hint: str = "Train or convert the adapter without it.") -> UnsupportedModelError:
    """The error for an adapter that is not supported."""
    return UnsupportedModelError(f"The adapter {path.name} is not supported: {why}.", f"In {path}.", hint)


def damaged(path: Path, why: str) -> UnsupportedModelError:
    """The error for an adapter that contradicts itself."""
    return UnsupportedModelError(
        f"The adapter {path.name} is broken: {why}.", f"In {path}.", "Make or download it again."
    )


def read_peft(path: Path) -> LoraFile:
    """Read a directory that PEFT wrote.

    Raises:
        ModelNotFoundError: a file is missing.
        UnsupportedModelError: a file is broken, or a setting is not supported.
    """
    for name in (CONFIG, WEIGHTS):
        if not present(path / name):
            pickle = next((p for p in sorted(path.glob("adapter_model.*")) if p.suffix in PICKLED), None)
            if pickle is not None:
                raise pickled(pickle)
            what = f"There is no {name} in {path}."
            raise ModelNotFoundError(what, "A LoRA adapter has both files.", "Check the path of the adapter.")
    settings = _Settings(path, load_json(path / CONFIG))
    checkpoint = Checkpoint(read_header(path / WEIGHTS))
    found: dict[str, dict[str, str]] = {}
    for name in checkpoint.entries:
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise refused(path, f"its tensor {shown(name)} is not a LoRA matrix of a linear layer")
        found.setdefault(match[1], {})[match[2]] = name
    pairs = {module: _pair(path, checkpoint, module, names, settings) for module, names in found.items()}
    return LoraFile(path, pairs, expected=settings.expected(pairs))


def _pair(path: Path, checkpoint: Checkpoint, module: str, names: dict[str, str], settings: _Settings) -> Pair:
    for kind in ("A", "B"):
        if kind not in names:
            raise damaged(path, f"{shown(module)} has no lora_{kind}")
        if (dtype := checkpoint.entries[names[kind]].dtype) not in ("F32", "F16", "BF16"):
            raise refused(
                path, f"{shown(names[kind])} has the dtype {dtype}", "Save it in float32, float16 or bfloat16."
            )
    rank = settings.rank(module)
    return checked_pair(
        path, module, checkpoint.read(names["A"]), checkpoint.read(names["B"]), rank, settings.scale(module, rank)
    )


def checked_pair(path: Path, module: str, a: npt.NDArray[Any], b: npt.NDArray[Any], rank: int, scale: float) -> Pair:
    """A pair, after checks of its shapes and values.

    Raises:
        UnsupportedModelError: the shapes are not [rank, …] and […, rank], or a value is not finite.
    """
    if a.ndim != 2 or b.ndim != 2 or len(a) != rank or b.shape[1] != rank:
        shapes = f"{list(a.shape)} and {list(b.shape)}"
        raise damaged(
            path, f"the matrices of {shown(module)} have the shapes {shapes}, which rank {rank} does not give"
        )
    for kind, values in (("A", a), ("B", b)):
        if not np.isfinite(widened(values)).all():
            raise damaged(path, f"the matrix {kind} of {shown(module)} holds NaN or infinity")
    return Pair(a, b, scale)


class _Settings:
    """adapter_config.json.

    Raises:
        UnsupportedModelError: it asks for something that is not supported, or a value is not valid.
    """

    def __init__(self, path: Path, config: dict[str, Any]):
        self._path, self._config = path, config
        if config.get("peft_type") != "LORA":
            raise refused(path, f"peft_type is {shown(config.get('peft_type'))}", "Use an adapter of the type LORA.")
        for key, value in config.items():
            neutral = "none" if key == "bias" else None
            if key not in _WITHOUT_EFFECT and value and value != neutral:
                raise refused(path, f"{CONFIG} sets {shown(key)} to {shown(value)}")
        initial = config.get("init_lora_weights", True)
        if not any(initial is known or (isinstance(initial, str) and initial == known) for known in _INITIAL):
            raise refused(
                path,
                f"init_lora_weights is {shown(initial)}, which changes the base model's weights too",
                "Convert it to a plain LoRA (path_initial_model_for_weight_conversion of PEFT's save_pretrained).",
            )
        self._rslora = self._flag("use_rslora")
        self._ranks, self._alphas = self._pattern("rank_pattern"), self._pattern("alpha_pattern")

    def rank(self, module: str) -> int:
        """The rank of a module's change."""
        value = _matching(self._ranks, module, self._config.get("r", 8))
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_RANK:
            raise damaged(self._path, f"the rank is {shown(value)}, not a whole number from 1 to {MOST_RANK}")
        return value

    def scale(self, module: str, rank: int) -> float:
        """The factor of B A: alpha / rank, or alpha / sqrt(rank) with rsLoRA (arXiv:2312.03732)."""
        alpha = _matching(self._alphas, module, self._config.get("lora_alpha", 8))
        if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) <= 1e6:
            raise damaged(self._path, f"lora_alpha is {shown(alpha)}")
        return float(alpha) / (math.sqrt(rank) if self._rslora else rank)

    def expected(self, modules: Mapping[str, Pair]) -> tuple[str, ...]:
        """The last names of modules that must have a change in every layer: those that ``target_modules`` lists, if
        nothing excludes any."""
        targets = self._config.get("target_modules")
        if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
            return ()
        last = {module.rpartition(".")[2] for module in modules}
        missing = [t for t in targets if t.rpartition(".")[2] not in last]
        if missing:
            raise damaged(self._path, f"it has no tensors for the target module {shown(missing[0])}")
        if self._config.get("layers_to_transform") is not None or self._config.get("exclude_modules"):
            return ()
        return tuple(t for t in targets if "." not in t)

    def _flag(self, key: str) -> bool:
        value = self._config.get(key, False)
        if not isinstance(value, bool):
            raise damaged(self._path, f"{key} is {shown(value)}")
        return value

    def _pattern(self, key: str) -> dict[re.Pattern[str], Any]:
        """Values by patterns of module names, as PEFT matches them (``get_pattern_key``)."""
        given = self._config.get(key) or {}
        if not isinstance(given, dict):
            raise damaged(self._path, f"{key} is {shown(given)}")
        return {_compiled(self._path, key, pattern): value for pattern, value in given.items()}


# Names and simple patterns. Nested repetition, which could match for ever, is none of them.
_SIMPLE = re.compile(r"\^?(?:[\w-]|\\?\.|\\d\+?|\[0-9\]\+?|\.\*|\((?:\?:)?[\w.|-]+\)|\[[\w-]+\])*\$?")


def _compiled(path: Path, key: str, pattern: str) -> re.Pattern[str]:
    simple = len(pattern) <= 200 and _SIMPLE.fullmatch(pattern) is not None
    if not simple or pattern.count("*") + pattern.count("+") > 3 or pattern.count("(") > 3:
        raise refused(path, f"{key} has the pattern {shown(pattern)}", "Write the names of the modules.")
    return re.compile(rf"(.*\.)?({pattern})$")


def _matching(values: Mapping[re.Pattern[str], Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches a module's name, which begins with ``model.`` in PEFT."""
    names = (module, f"model.{module}")
    return next((v for pattern, v in values.items() if any(map(pattern.match, names))), default)
