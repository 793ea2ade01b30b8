"""LoRA adapters for a model: files whose matrices were checked against the model's layout (Hu et al. 2021,
arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llamagpu.errors import LlamaGPUError, ModelNotFoundError, UnsupportedModelError, UsageError, shown
from llamagpu.kernels.lora import Change, Columns
from llamagpu.model.architecture import BASE
from llamagpu.model.layout import Key, Layout, Matrix
from llamagpu.model.sources.files import present
from llamagpu.model.sources.lora import LoraFile, Pair, read_peft, refused, widened
from llamagpu.model.sources.source import paired_rows

_MOST_SHOWN = 4  # names in a message


@dataclass(frozen=True)
class Lora:
    """An adapter that fits a model.

    Attributes:
        pairs: its matrices for each fused matrix of the model, in the order of the pieces; None changes nothing.
    """

    file: LoraFile
    layout: Layout
    pairs: Mapping[Key, tuple[Pair | None, ...]]

    def changes(self, key: Key) -> list[Change | None]:
        """The changes of a fused matrix, float32, with the rows of B in the order of the product's columns."""
        matrix = self.layout.matrices[key]
        return [None if p is None else self._change(matrix, i, p) for i, p in enumerate(self.pairs[key])]

    def _change(self, matrix: Matrix, i: int, pair: Pair) -> Change:
        piece = matrix.pieces[i]
        b = widened(pair.b)
        if not self.file.paired:
            b = b[paired_rows(piece.name, np.arange(len(b)), self.layout.config)]
        if len(matrix.pieces) == 1:  # a tensor that is fused in the checkpoint: its rows may be interleaved
            placed = np.empty_like(b)
            placed[piece.rows] = b
            b = placed
        return Change(widened(pair.a), b, pair.scale)


def columns_of(matrix: Matrix) -> Columns:
    """Which columns of a product belong to each piece of its matrix."""
    counts = tuple(len(p.rows) for p in matrix.pieces)
    return Columns(counts, alternate=len(counts) == 2 and int(matrix.pieces[1].rows[0]) == 1)


def read_lora(path: str | Path, layout: Layout) -> Lora:
    """Read an adapter for a model: a directory that PEFT wrote, or a GGUF file. Nothing is on a device yet.

    Raises:
        ModelNotFoundError: it is missing.
        UnsupportedModelError: it is broken, not supported, or belongs to another model; the reason is named.
        UsageError: ``path`` is not a path.
    """
    if not isinstance(path, (str, Path)) or not str(path).strip():
        raise UsageError(f"{shown(path)} is not a LoRA adapter.", "It is a directory, or a GGUF file.")
    try:
        return fitted(_read(Path(path).expanduser()), layout)
    except LlamaGPUError:
        raise
    except (OSError, RuntimeError) as e:
        why = getattr(e, "strerror", None) or str(e)
        raise UnsupportedModelError(f"The adapter {shown(str(path))} cannot be read.", why, "Check the path.") from None


def _read(path: Path) -> LoraFile:
    if path.is_dir():
        return read_peft(path)
    if not present(path):
        what = f"There is no LoRA adapter {path}."
        raise ModelNotFoundError(what, "An adapter is a directory that PEFT wrote, or a GGUF file.", "Check the path.")
    if path.name in ("adapter_config.json", "adapter_model.safetensors"):
        return read_peft(path.parent)
    from llamagpu.model.sources.gguf.lora import read_gguf_lora  # imported here because most adapters are directories

    return read_gguf_lora(path)


def fitted(file: LoraFile, layout: Layout) -> Lora:
    """An adapter's file checked against a model.

    Raises:
        UnsupportedModelError: it changes modules that the model does not have or that cannot be changed, or its
            matrices have other sizes.
    """
    config = layout.config
    if file.model_type not in (None, config.model_type):
        raise _foreign(file, f"It was made for {file.model_type}, and the model is {config.model_type}.")
    places = {
        _module(piece.name): (key, i)
        for key, matrix in layout.matrices.items()
        if key.layer is not None
        for i, piece in enumerate(matrix.pieces)
    }
    pairs: dict[Key, list[Pair | None]] = {}
    for module, pair in file.pairs.items():
        if module not in places:
            last = {name.rpartition(".")[2] for name in places}
            if module.rpartition(".")[2] in last:
                raise _foreign(file, f"It changes {shown(module)}, which the model does not have.")
            raise refused(file.path, f"it changes {shown(module)}", f"Supported modules: {', '.join(sorted(last))}.")
        key, i = places[module]
        matrix = layout.matrices[key]
        have, need = (pair.b.shape[0], pair.a.shape[1]), (len(matrix.pieces[i].rows), matrix.columns)
        if have != need:
            raise _foreign(
                file, f"It changes {module} as [{have[0]}, {have[1]}]; the model's is [{need[0]}, {need[1]}]."
            )
        pairs.setdefault(key, [None] * len(matrix.pieces))[i] = pair
    if not pairs:
        raise refused(file.path, "it has no matrices")
    missing = [m for m in places if m.rpartition(".")[2] in file.expected and m not in file.pairs]
    if missing:
        raise _foreign(file, f"It has no matrices for {', '.join(missing[:_MOST_SHOWN])}, which its config lists.")
    return Lora(file, layout, {key: tuple(p) for key, p in pairs.items()})


def _module(tensor: str) -> str:
    return tensor.removesuffix(".weight").removeprefix(BASE)


def _foreign(file: LoraFile, why: str) -> UnsupportedModelError:
    hint = "Use an adapter that was trained on this model."
    return UnsupportedModelError(f"The adapter {file.path.name} does not fit this model.", why, hint)
