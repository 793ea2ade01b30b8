"""Fingerprints of models: whether two loads are of the same model, wherever its files are."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from llamagpu.model.model import Prepared
from llamagpu.model.sentence_transformers import Pipeline
from llamagpu.model.sources import Source
from llamagpu.model.tensor_layout import FLOATS


def fingerprint(prepared: Prepared, chat_template: str | None = None) -> str:
    """A SHA-256, in hexadecimal, of the config, generation settings, tokenizer and chat templates, of a chat template
    that replaces them, and of each tensor's name, shape, format and three rows. Training changes nearly every row, so
    the others are not read."""
    layout, digest = prepared.layout, _Digest(prepared.source, [prepared.source.generation_config()])
    digest.add([prepared.source.chat_templates(), chat_template])
    matrices = [piece for matrix in layout.matrices.values() for piece in matrix.pieces]
    vectors = [piece for vector in layout.vectors.values() for piece in vector.pieces]
    for piece in (*matrices, *vectors):
        digest.add_tensor(piece.name, len(piece.rows))
    return digest.hexdigest()


def encoder_fingerprint(source: Source, pipeline: Pipeline | None = None) -> str:
    """The same of an encoder: of all its float tensors, and of what sentence-transformers keeps beside them."""
    digest = _Digest(source, [])
    for name, stored in sorted(source.tensors().items()):
        if stored.shape and (stored.format in FLOATS.values() or not isinstance(stored.format, str)):
            digest.add_tensor(name, stored.shape[0])
    if pipeline is not None:
        facts = {k: v for k, v in vars(pipeline).items() if k != "steps"}
        digest.add(facts | {"prompts": dict(pipeline.prompts)})
        for step in pipeline.steps:
            digest.add(None if step is None else [step.tanh, step.weight.shape])
            for values in () if step is None else (step.weight, step.bias):
                digest.add_array(values)
    return digest.hexdigest()


class _Digest:
    """A SHA-256 that begins with a source's config and tokenizer."""

    def __init__(self, source: Source, more: list[Any]):
        self._digest, self._source, self._stored = hashlib.sha256(), source, source.tensors()
        self.add([source.config(), *more, source.tokenizer_config()])
        tokenizer = source.tokenizer_file()
        self._digest.update(tokenizer.encode() if isinstance(tokenizer, str) else tokenizer)

    def add(self, value: Any) -> None:
        """Add a JSON value."""
        self._digest.update(json.dumps(value, sort_keys=True, default=str).encode() + b"\0")

    def add_array(self, values: Any) -> None:
        """Add an array's bytes; None adds nothing."""
        if values is not None:
            self._digest.update(np.ascontiguousarray(values).tobytes())

    def add_tensor(self, name: str, rows: int) -> None:
        """Add a tensor's name, shape, format, and its first, middle and last of so many rows."""
        self.add([name, self._stored[name].shape, str(self._stored[name].format)])
        found = self._source.rows(name, np.array([0, (rows - 1) // 2, rows - 1]))
        for part in found if isinstance(found, tuple) else (found,):
            self.add_array(part)

    def hexdigest(self) -> str:
        """The digest so far."""
        return self._digest.hexdigest()
