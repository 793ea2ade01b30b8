"""Sources of a model's config, text files and tensors."""

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
]
