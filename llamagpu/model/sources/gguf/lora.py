"""LoRA adapters in GGUF files, as llama.cpp's ``convert_lora_to_gguf.py`` writes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy.typing as npt

from llamagpu.errors import shown
from llamagpu.model.sources.files import map_file
from llamagpu.model.sources.gguf.architectures import FAMILIES
from llamagpu.model.sources.gguf.blocks import FLOATS
from llamagpu.model.sources.gguf.header import Header, read_header
from llamagpu.model.sources.lora import MOST_RANK, LoraFile, Pair, checked_pair, damaged, refused

_TENSOR = re.compile(r"(.+\.weight)\.lora_([ab])")
_MODULE = re.compile(r"model\.(.+)\.weight")


def read_gguf_lora(path: Path) -> LoraFile:
    """Read an adapter's file.

    Raises:
        ModelNotFoundError: there is no such file.
        UnsupportedModelError: it is broken, or holds something else or something that is not supported.
    """
    header = read_header(path)
    kind = header.fields.get("general.type"), header.fields.get("adapter.type")
    if kind != ("adapter", "lora"):
        what = f"general.type is {shown(kind[0])} and adapter.type {shown(kind[1])}"
        raise refused(path, what, "Give the GGUF file of a LoRA adapter.")
    if header.fields.get("adapter.alora.invocation_tokens") is not None:
        raise refused(path, "it has invocation tokens (aLoRA)")
    architecture = header.fields.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        raise refused(path, f"its architecture is {shown(architecture)}", "Use an adapter of a supported architecture.")
    family = FAMILIES[architecture]
    found: dict[str, dict[str, str]] = {}
    for name in header.tensors:
        match = _TENSOR.fullmatch(name)
        module = None if match is None else _MODULE.fullmatch(family.tensor_name(match[1]) or "")
        if match is None or module is None:
            raise refused(path, f"its tensor {shown(name)} is not a LoRA matrix of a linear layer")
        found.setdefault(module[1], {})[match[2]] = name
    alpha = header.fields.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 <= alpha <= 1e6:
        raise damaged(path, f"adapter.lora.alpha is {shown(alpha)}")
    file = map_file(path)
    pairs = {module: _pair(header, file, module, names, float(alpha)) for module, names in found.items()}
    return LoraFile(path, pairs, family.model_type, paired=not family.halves)


def _pair(header: Header, file: npt.NDArray[Any], module: str, names: dict[str, str], alpha: float) -> Pair:
    path, values = header.path, {}
    for kind in ("a", "b"):
        if kind not in names:
            raise damaged(path, f"{shown(module)} has no lora_{kind}")
        info = header.tensors[names[kind]]
        if info.dtype not in FLOATS:
            raise refused(path, f"{shown(names[kind])} has the type {info.dtype}", f"Supported: {', '.join(FLOATS)}.")
        values[kind] = file[info.begin : info.end].view(FLOATS[info.dtype][1]).reshape(info.shape)
    rank = len(values["a"]) if values["a"].ndim else 0
    if not 1 <= rank <= MOST_RANK:
        raise damaged(path, f"the rank of {shown(module)} is {rank}, not a number from 1 to {MOST_RANK}")
    # llama.cpp takes an alpha of 0 for none: the change is B A then
    return checked_pair(path, module, values["a"], values["b"], rank, alpha / rank if alpha else 1.0)
