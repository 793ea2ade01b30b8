"""Fingerprints of models: whether two loads are of the same model, wherever its files are."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from llamagpu.model.model import Prepared


def fingerprint(prepared: Prepared, chat_template: str | None = None) -> str:
    """A SHA-256, in hexadecimal, of the config, generation settings, tokenizer and chat templates, of a chat template
    that replaces them, and of each tensor's name, shape, format and three rows. Training changes nearly every row, so
    the others are not read."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        digest.update(json.dumps(value, sort_keys=True, default=str).encode() + b"\0")

    source, layout = prepared.source, prepared.layout
    add([source.config(), source.generation_config(), source.tokenizer_config()])
    add([source.chat_templates(), chat_template])
    tokenizer = source.tokenizer_file()
    digest.update(tokenizer.encode() if isinstance(tokenizer, str) else tokenizer)
    matrices = [piece for matrix in layout.matrices.values() for piece in matrix.pieces]
    vectors = [piece for vector in layout.vectors.values() for piece in vector.pieces]
    for piece in (*matrices, *vectors):
        add([piece.name, piece.stored.shape, str(piece.stored.format)])
        last = len(piece.rows) - 1
        rows = source.rows(piece.name, np.array([0, last // 2, last]))
        for part in rows if isinstance(rows, tuple) else (rows,):
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
