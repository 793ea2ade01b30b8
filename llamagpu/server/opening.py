"""Opening a model as what it is, and its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamagpu.engine import LLM, CrossEncoder, Embedder
from llamagpu.errors import UsageError
from llamagpu.model import find_model
from llamagpu.model.encoder_config import is_encoder
from llamagpu.model.find import open_source
from llamagpu.model.fit import CLASSIFIERS, Load
from llamagpu.model.weights import Progress

Model = LLM | Embedder | CrossEncoder
_NAMED = re.compile(r"([\w.:/-]+)=(.+)", re.DOTALL)
_FIT = ("device", "max_memory", "dtype", "kv_dtype", "context")


def named(text: str) -> tuple[str, str]:
    """The name and the model of an option ``-m``. Without a name (NAME=PATH), it is the last part of a path, or the
    hub id."""
    path = Path(text).expanduser()
    given = None if path.exists() else _NAMED.fullmatch(text)
    if given:
        return given[1], given[2]
    if not path.exists():
        return text, text
    return (path.stem if path.is_file() else path.resolve().name), text


def open_model(model: str, options: Mapping[str, Any], progress: Progress | None = None) -> Model:
    """Load a model as a cross-encoder if it is an encoder with a classifier, as an embedder if it is another encoder or
    a directory of sentence-transformers, and otherwise as a model that generates text.

    Args:
        options: of ``LLM``; the others take those that they have.

    Raises:
        LlamaGPUError: it cannot be loaded; see ``LLM``.
        UsageError: there are adapters for a model that does not generate text.
    """
    given = dict(options)
    load = Load(**{name: given[name] for name in _FIT if given.get(name) is not None})
    path = find_model(model, given.get("revision"), fit=load)
    source = open_source(path)
    encoder = is_encoder(source.config())
    if not encoder and not (path.is_dir() and (path / "modules.json").is_file()):
        return LLM(model, progress=progress, **given)
    if given.pop("adapters", None):
        what = f"The model {model} takes no adapters."
        raise UsageError(what, "It does not generate text.", "Give the adapters' model as the first -m.")
    for name in ("kv_dtype", "speculate"):
        given.pop(name, None)
    context = given.pop("context", None)
    if encoder and any(re.fullmatch(pattern, name) for pattern in CLASSIFIERS for name in source.tensors()):
        return CrossEncoder(model, max_length=context, progress=progress, **given)
    return Embedder(model, max_seq_length=context, progress=progress, **given)
