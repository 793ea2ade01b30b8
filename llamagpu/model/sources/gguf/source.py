"""A GGUF file, whole or split in parts, as the source of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.errors import ModelNotFoundError, UnsupportedModelError
from llamagpu.gpu import widen_bf16
from llamagpu.model.config import Config, parse_config
from llamagpu.model.sources.files import broken, map_file, present
from llamagpu.model.sources.gguf.architectures import config_of, family_of
from llamagpu.model.sources.gguf.blocks import BLOCKS, FLOATS, repack, stored_format
from llamagpu.model.sources.gguf.header import Header, Info, read_header
from llamagpu.model.sources.gguf.vocabulary import Vocabulary
from llamagpu.model.sources.source import Quantized, Rows, Stored, paired_rows

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.I)
_TEMPLATE = "tokenizer.chat_template"
_MOST_FACTORS = 4096  # rotary factors: half of a head


class Gguf:
    """A model in one GGUF file or several parts.

    Raises:
        UnsupportedModelError: a header is broken, or the model is not supported.
        ModelNotFoundError: a part is missing.
    """

    def __init__(self, path: Path):
        self.name = path.stem
        self._fields, self.entries = _parts(path)
        self._family = family_of(self._fields)
        self._maps: dict[Path, npt.NDArray[np.uint8]] = {}
        self.own_names: dict[str, str] = {}
        for own, info in self.entries.items():
            name = self._family.tensor_name(own)
            if name is not None:
                _require_type(own, info)
                self.own_names[name] = own

    def config(self) -> dict[str, Any]:
        """The keys of config.json, from the metadata."""
        shapes = {name: info.shape for name, info in self.entries.items()}
        return config_of(self._fields, shapes, self._factors) | self.vocabulary.ids()

    def generation_config(self) -> dict[str, Any]:
        """Nothing: the metadata's token ids are in the config."""
        return {}

    def tokenizer_config(self) -> dict[str, Any]:
        """The special tokens that chat templates name, and whether BOS is added."""
        return self.vocabulary.tokenizer_config()

    def tokenizer_file(self) -> str | bytes:
        """The vocabulary in the format of the ``tokenizers`` library."""
        return self.vocabulary.tokenizer_json()

    def chat_templates(self) -> dict[str, str]:
        """``tokenizer.chat_template``, and others by the names after it."""
        found = {key: v for key, v in self._fields.items() if key.startswith(_TEMPLATE) and isinstance(v, str)}
        return {key[len(_TEMPLATE) :].removeprefix(".") or "default": template for key, template in found.items()}

    def tensors(self) -> Mapping[str, Stored]:
        """See ``Source.tensors``."""
        entries = ((name, self.entries[own]) for name, own in self.own_names.items())
        return {
            name: Stored(info.shape, "f32" if self._is_shifted(name) else stored_format(info.dtype))
            for name, info in entries
        }

    def rows(self, name: str, rows: Rows) -> npt.NDArray[Any] | Quantized:
        """See ``Source.rows``."""
        info = self.entries[self.own_names[name]]
        own = paired_rows(name, rows, self._config) if self._family.halves else rows
        values = self._bytes(info)
        if info.dtype in BLOCKS:
            return repack(values.reshape(info.shape[0], -1)[own], info.dtype)
        floats: npt.NDArray[Any] = values.view(FLOATS[info.dtype][1]).reshape(info.shape)[own]
        if not self._is_shifted(name):
            return floats
        # w from 1 + w. Exact for sums that were rounded to float32, so that the model's own 1 + w gives them back.
        wide = widen_bf16(floats) if info.dtype == "BF16" else floats.astype(np.float32)
        shifted: npt.NDArray[Any] = wide - np.float32(1)
        return shifted

    def _is_shifted(self, name: str) -> bool:
        """Whether the file holds 1 + w for this tensor."""
        return self._family.norms_plus_one and "norm" in name

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer's metadata, read at first use."""
        return Vocabulary(self._fields)

    @cached_property
    def _config(self) -> Config:
        return parse_config(self.config())

    def _bytes(self, info: Info) -> npt.NDArray[np.uint8]:
        if info.path not in self._maps:
            self._maps[info.path] = map_file(info.path)
        return self._maps[info.path][info.begin : info.end]

    def _factors(self, name: str) -> list[float]:
        info = self.entries.get(name)
        if info is None:
            return []
        if info.dtype != "F32" or len(info.shape) != 1 or info.shape[0] > _MOST_FACTORS:
            raise broken(info.path, f"{name} is {info.dtype} {list(info.shape)}; it must be a float32 vector")
        return [float(str(v)) for v in self._bytes(info).view(np.float32)]


def open_gguf(path: Path) -> Gguf:
    """The source of a GGUF file; of a split model any part may be given.

    Raises:
        UnsupportedModelError: a header is broken, or the model is not supported.
        ModelNotFoundError: a part is missing.
    """
    return Gguf(path)


def _parts(path: Path) -> tuple[dict[str, Any], dict[str, Info]]:
    """The metadata of the first part, and the tensors of all."""
    given = read_header(path)
    count = _split_count(given)
    if count <= 1:
        return given.fields, given.tensors
    named = _PART.fullmatch(path.name)
    if named is None or int(named[3]) != count:
        raise UnsupportedModelError(
            f"{path.name} is one of {count} parts, but is not named so.",
            f"Parts end with -00001-of-{count:05}.gguf.",
            "Restore the names of the files.",
        )
    headers = [_part(path.with_name(f"{named[1]}-{i + 1:05}-of-{count:05}.gguf"), i, count) for i in range(count)]
    tensors: dict[str, Info] = {}
    for header in headers:
        if again := tensors.keys() & header.tensors.keys():
            raise broken(header.path, f"another part has the tensor {min(again)} too")
        tensors |= header.tensors
    wanted = headers[0].fields.get("split.tensors.count", len(tensors))
    if wanted != len(tensors):
        raise broken(headers[0].path, f"the parts have {len(tensors)} tensors, not {wanted}")
    return headers[0].fields, tensors


def _split_count(header: Header) -> int:
    count = header.fields.get("split.count", 0)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 100_000:
        raise broken(header.path, f"split.count is {count!r:.40}")
    return count


def _part(path: Path, number: int, count: int) -> Header:
    if not present(path):
        raise ModelNotFoundError(
            f"The part {path.name} is missing from {path.parent}.",
            f"The model is split into {count} files.",
            "Download the missing file into the same directory.",
        )
    header = read_header(path)
    if (header.fields.get("split.no"), _split_count(header)) != (number, count):
        raise broken(path, "its metadata names another part")
    return header


def _require_type(name: str, info: Info) -> None:
    if info.dtype not in BLOCKS and info.dtype not in FLOATS:
        raise UnsupportedModelError(
            f"The tensor {name} has the type {info.dtype}.",
            f"Supported: {', '.join((*FLOATS, *BLOCKS))}.",
            "Choose another version of the model.",
        )
    if info.dtype in BLOCKS and len(info.shape) != 2:
        raise UnsupportedModelError(
            f"The tensor {name} of {info.dtype} blocks has the shape {list(info.shape)}.", "Only matrices have blocks."
        )
