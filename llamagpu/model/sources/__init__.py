"""Sources of a model's config, text files and tensors."""

from pathlib import Path

from llamagpu.model.sources.huggingface import HuggingFace, Mlx, open_directory
from llamagpu.model.sources.random import SHAPES, RandomWeights
from llamagpu.model.sources.source import Format, Quantized, Rows, Source, Stored

__all__ = [
    "SHAPES",
    "Format",
    "HuggingFace",
    "Mlx",
    "Quantized",
    "RandomWeights",
    "Rows",
    "Source",
    "Stored",
    "open_directory",
    "open_path",
]


def open_path(path: Path) -> Source:
    """The source of a model directory or a GGUF file."""
    if path.is_dir():
        return open_directory(path)
    from llamagpu.model.sources.gguf import open_gguf  # imported here because most models are directories

    return open_gguf(path)
