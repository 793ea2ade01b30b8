"""Model directories in Hugging Face layout (config.json, tokenizer.json, safetensors), and MLX's quantized ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt

from llamagpu.errors import ModelNotFoundError, UnsupportedModelError, shown
from llamagpu.gpu import Affine
from llamagpu.model.config import Config, parse_config
from llamagpu.model.encoder_config import is_encoder
from llamagpu.model.sources.files import MOST_TOKENIZER, load_config, load_json, present, read_bytes, read_text
from llamagpu.model.sources.safetensors import Checkpoint, Entry, open_checkpoint
from llamagpu.model.sources.source import Quantized, Rows, Stored, paired_rows

_BARE = ("embed_tokens.", "layers.", "norm.")  # how names begin in checkpoints of base models, without "model."


class HuggingFace:
    """A model directory. ``checkpoint`` has the tensors under their own names and in their own order of rows."""

    def __init__(self, directory: Path, checkpoint: Checkpoint | None = None):
        self.directory, self.name = directory, directory.name
        self._given = checkpoint

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The headers of the weights, read at first use."""
        try:
            return self._given or open_checkpoint(self.directory)
        except ModelNotFoundError:
            raise
        except OSError as e:
            raise UnsupportedModelError(f"The files of {self.directory} cannot be read.", str(e)) from None

    @property
    def entries(self) -> Mapping[str, Entry]:
        """See ``Source.entries``."""
        return self.checkpoint.entries

    @cached_property
    def _config(self) -> Config:
        return parse_config(self.config(), self.generation_config())

    def config(self) -> dict[str, Any]:
        """config.json."""
        return load_config(self.directory)

    def generation_config(self) -> dict[str, Any]:
        """generation_config.json; empty without the file."""
        return self._optional("generation_config.json")

    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json; empty without the file. Older checkpoints have some of its keys in other files."""
        config = self._optional("special_tokens_map.json") | self._optional("tokenizer_config.json")
        if "added_tokens_decoder" not in config:
            added = self._optional("added_tokens.json")
            special = config.get("additional_special_tokens")
            listed = special if isinstance(special, list) else []
            names = [t.get("content") if isinstance(t, dict) else t for t in listed]
            known = {name for name in names if isinstance(name, str)}
            config["added_tokens_decoder"] = {str(i): {"content": t, "special": t in known} for t, i in added.items()}
        return config

    def _optional(self, name: str) -> dict[str, Any]:
        path = self.directory / name
        return load_json(path) if present(path) else {}

    def tokenizer_file(self) -> str | bytes:
        """tokenizer.json, or else tokenizer.model.

        Raises:
            ModelNotFoundError: there is neither.
        """
        path, model = self.directory / "tokenizer.json", self.directory / "tokenizer.model"
        if present(path):
            return read_text(path, MOST_TOKENIZER)
        if present(model):
            return read_bytes(model)
        tekken = present(self.directory / "tekken.json")
        raise ModelNotFoundError(
            f"There is no tokenizer.json in {self.directory}.",
            "Mistral's tekken.json is not supported." if tekken else "Text cannot be tokenized without it.",
            "Make it with transformers (AutoTokenizer.from_pretrained, then save_pretrained), or download it again.",
        )

    def chat_templates(self) -> dict[str, str]:
        """chat_template.jinja and additional_chat_templates/*.jinja, or ``chat_template`` of tokenizer_config.json: a
        string, or a list of names and templates."""
        path = self.directory / "chat_template.jinja"
        if present(path):
            others = sorted((self.directory / "additional_chat_templates").glob("*.jinja"))
            return {"default": read_text(path)} | {other.stem: read_text(other) for other in others}
        given = self.tokenizer_config().get("chat_template")
        if given is None or isinstance(given, str):
            return {} if given is None else {"default": given}
        if not isinstance(given, list) or not all(map(_is_named_template, given)):
            raise UnsupportedModelError(
                f"The chat_template of {self.name} is neither text nor a list of objects with name and template.",
                f"tokenizer_config.json sets it to {shown(given)}.",
                "Download the file again.",
            )
        return {t["name"]: t["template"] for t in given}

    @cached_property
    def _own_names(self) -> dict[str, str]:
        """The checkpoint's own name for every tensor. Names of base models lack the prefix ``model.``."""
        names = self.checkpoint.entries
        bare = not any(n.startswith("model.") for n in names)
        return {f"model.{n}" if bare and n.startswith(_BARE) else n: n for n in names}

    @cached_property
    def _stored(self) -> dict[str, Stored]:
        entries = self.checkpoint.entries
        return {name: Stored(entries[own].shape, self.checkpoint.dtype(own)) for name, own in self._own_names.items()}

    def own_name(self, name: str) -> str:
        """The name of a tensor in ``checkpoint``."""
        return self._own_names[name]

    def tensors(self) -> Mapping[str, Stored]:
        """See ``Source.tensors``."""
        return self._stored

    def rows(self, name: str, rows: Rows) -> npt.NDArray[Any] | Quantized:
        """See ``Source.rows``."""
        values: npt.NDArray[Any] = self.checkpoint.read(self._own_names[name])[self.own_rows(name, rows)]
        return values

    def own_rows(self, name: str, rows: Rows) -> Rows:
        """Where rows with adjacent rotary pairs are in the checkpoint. Encoders rotate nothing."""
        return rows if self._encodes else paired_rows(name, rows, self._config)

    @cached_property
    def _encodes(self) -> bool:
        return is_encoder(self.config())


class Mlx(HuggingFace):
    """A directory with MLX's quantized tensors: each ``weight`` has ``scales`` and ``biases`` beside it."""

    @cached_property
    def _stored(self) -> dict[str, Stored]:
        found = super()._stored
        out: dict[str, Stored] = {}
        for name, stored in found.items():
            scales = _beside(name, "scales")
            if name.endswith(("scales", "biases")) and _beside(name, "weight") in found:
                continue
            out[name] = self._quantized(name, found) if name.endswith("weight") and scales in found else stored
        return out

    def _quantized(self, name: str, found: Mapping[str, Stored]) -> Stored:
        """A quantized tensor, after a check of its parts."""
        block = self._config.quantization
        pair = None if block is None else block.of(self._own_names[name].removesuffix(".weight"))
        scales, packed = found[_beside(name, "scales")], found[name]
        rows, groups = scales.shape if len(scales.shape) == 2 else (0, 0)
        if pair is None or packed.shape != (rows, groups * pair[1] * pair[0] // 32):
            raise UnsupportedModelError(
                f"The tensor {name} is quantized, and config.json does not say how.",
                f"Its shape is {list(packed.shape)}, and that of its scales {list(scales.shape)}. "
                "The quantization block must give matching bits and group_size.",
                "Download the model again.",
            )
        bits, group = pair
        if packed.format != "u32" or scales.format not in ("f32", "f16", "bf16"):
            raise UnsupportedModelError(
                f"The tensor {name} has the dtype {packed.format}, its scales {scales.format}.",
                "Packed values are u32, scales f32, f16 or bf16.",
            )
        biases = found.get(_beside(name, "biases"))
        if biases is None:
            raise UnsupportedModelError(f"The checkpoint has no tensor {_beside(name, 'biases')}.", f"{name} needs it.")
        if biases != scales:
            raise UnsupportedModelError(
                f"The tensor {_beside(name, 'biases')} has the shape {list(biases.shape)} and dtype {biases.format}.",
                f"Its scales have {list(scales.shape)} and {scales.format}.",
            )
        return Stored((rows, groups * group), Affine(bits, group, str(scales.format)))

    def rows(self, name: str, rows: Rows) -> npt.NDArray[Any] | Quantized:
        """See ``Source.rows``."""
        if not isinstance(self._stored[name].format, Affine):
            return super().rows(name, rows)
        own = self.own_rows(name, rows)
        weight = self._own_names[name]
        packed, scales, biases = (self.checkpoint.read(_beside(weight, s))[own] for s in ("weight", "scales", "biases"))
        return packed, scales, biases


def _beside(name: str, suffix: str) -> str:
    """The name of another part of the same module."""
    return f"{name.rpartition('.')[0]}.{suffix}"


def _is_named_template(given: Any) -> bool:
    return isinstance(given, dict) and all(isinstance(given.get(key), str) for key in ("name", "template"))


def open_directory(directory: Path, checkpoint: Checkpoint | None = None) -> HuggingFace:
    """The source of a model directory, by its config. ``checkpoint`` replaces the directory's own headers."""
    config = load_config(directory)
    quantized = config.get("quantization") or config.get("quantization_config")
    return (Mlx if quantized else HuggingFace)(directory, checkpoint)
