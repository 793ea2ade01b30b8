"""Sources of models: config, tokenizer, chat template, generation settings, and tensors.

A source uses the tensor names of Hugging Face checkpoints and this project's order of rows. It translates the
differences of a file format (other names, rotary pairs half a head apart, another packing of weights), so that layout
and loading are independent of formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Affine
from llamagpu.model.architectures import ARCHITECTURES
from llamagpu.model.config import Config

Rows = npt.NDArray[np.int64]
Quantized = tuple[npt.NDArray[np.uint32], npt.NDArray[Any], npt.NDArray[Any]]
Format = str | Affine


@dataclass(frozen=True)
class Stored:
    """A tensor of a source: its shape, and the format of its elements: f32, f16, bf16, or affine groups."""

    shape: tuple[int, ...]
    format: Format


class Entry(Protocol):
    """A tensor of a file: its dtype by the format's own name, and its shape."""

    @property
    def dtype(self) -> str:
        """F32, Q4_K, …"""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""


class Source(Protocol):
    """A model that can be loaded. ``name`` is its name in messages."""

    name: str

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Every tensor of the files under its name there, with its dtype and shape there."""

    def config(self) -> dict[str, Any]:
        """The keys of config.json, under their names there."""

    def generation_config(self) -> dict[str, Any]:
        """The keys of generation_config.json; empty without the file."""

    def tokenizer_file(self) -> str | bytes:
        """The tokenizer: text in the format of the ``tokenizers`` library, or the bytes of a SentencePiece model."""

    def tokenizer_config(self) -> dict[str, Any]:
        """The keys of tokenizer_config.json; empty without the file."""

    def chat_templates(self) -> dict[str, str]:
        """The Jinja sources of chat templates by name, such as ``default`` and ``tool_use``; empty without one."""

    def tensors(self) -> Mapping[str, Stored]:
        """Every tensor, by its name in a Hugging Face checkpoint. A quantized one appears once, as its ``weight``."""

    def rows(self, name: str, rows: Rows) -> npt.NDArray[Any] | Quantized:
        """Rows of a tensor as stored: float32, float16, or uint16 with bfloat16 bits; for a quantized tensor its packed
        values, scales and biases. Rotary pairs of q and k are adjacent rows."""


def paired_rows(name: str, rows: Rows, config: Config) -> Rows:
    """Rows of a tensor with adjacent rotary pairs, in a checkpoint whose pairs lie half of the rotated part apart.
    Other tensors keep their rows."""
    row = ARCHITECTURES[config.model_type]
    role = row.rotated(name)
    rope = next((spec.rope for spec in config.layers if spec.rope is not None), None)
    if role is None or rope is None or row.neighbours:
        return rows
    within = rows % config.head_dim
    split = within // 2 + within % 2 * (rope.rotary // 2)
    own: Rows = rows - within + np.where(within < rope.rotary, split, within)
    return own if role != "qkv" else np.where(rows < config.q_size + config.kv_size, own, rows)
