"""The model layer: config -> architecture row -> weights -> recorded forward pass."""

from llamagpu.model.config import Config, Rope, load_config, load_generation_config, parse_config
from llamagpu.model.model import (
    DEFAULT_MODEL,
    Model,
    Prepared,
    Sizes,
    check_dtypes,
    embedded_models,
    find_model,
    load_model,
    prepare,
    prepare_model,
    prepare_shape,
)

__all__ = [
    "DEFAULT_MODEL",
    "Config",
    "Model",
    "Prepared",
    "Rope",
    "Sizes",
    "check_dtypes",
    "embedded_models",
    "find_model",
    "load_config",
    "load_generation_config",
    "load_model",
    "parse_config",
    "prepare",
    "prepare_model",
    "prepare_shape",
]
