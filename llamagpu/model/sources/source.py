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
from llamagpu.model.config import Config

Rows = npt.NDArray[np.int64]
Quantized = tuple[npt.NDArray[np.uint32], npt.NDArray[Any], npt.NDArray[Any]]
Format = str | Affine
_ROTATED = (".q_proj.", ".k_proj.", ".q_norm.", ".k_norm.", ".query_layernorm.", ".key_layernorm.")
_FUSED = ".qkv_proj."


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

    def tokenizer_json(self) -> str:
        """The tokenizer, in the format of the ``tokenizers`` library."""

    def tokenizer_config(self) -> dict[str, Any]:
        """The keys of tokenizer_config.json; empty without the file."""

    def chat_template(self) -> str | None:
        """The chat template's Jinja source, or None."""

    def tensors(self) -> Mapping[str, Stored]:
        """Every tensor, by its name in a Hugging Face checkpoint. A quantized one appears once, as its ``weight``."""

    def rows(self, name: str, rows: Rows) -> npt.NDArray[Any] | Quantized:
        """Rows of a tensor as stored: float32, float16, or uint16 with bfloat16 bits; for a quantized tensor its packed
        values, scales and biases. Rotary pairs of q and k are adjacent rows."""


def paired_rows(name: str, rows: Rows, config: Config) -> Rows:
    """Rows of a tensor whose rotary pairs lie half a head apart, in the order that makes the pairs adjacent. Other
    tensors keep their rows."""
    if _FUSED in name:
        return np.where(rows < config.q_size + config.kv_size, _paired(rows, config.head_dim), rows)
    return _paired(rows, config.head_dim) if any(part in name for part in _ROTATED) else rows


def _paired(rows: Rows, head_dim: int) -> Rows:
    within = rows % head_dim
    own: Rows = rows - within + within // 2 + within % 2 * (head_dim // 2)
    return own
