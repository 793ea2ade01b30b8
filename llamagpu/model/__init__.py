"""The model layer: source -> config -> architecture row -> layout -> weights -> recorded forward pass."""

from llamagpu.model.config import Config, parse_config
from llamagpu.model.find import DEFAULT_MODEL, bundled_models, find_model
from llamagpu.model.model import Model, Prepared, check_dtypes, load_model, prepare, prepare_model, prepare_shape
from llamagpu.model.rope import Rope
from llamagpu.model.sizes import Sizes

__all__ = [
    "DEFAULT_MODEL",
    "Config",
    "Model",
    "Prepared",
    "Rope",
    "Sizes",
    "bundled_models",
    "check_dtypes",
    "find_model",
    "load_model",
    "parse_config",
    "prepare",
    "prepare_model",
    "prepare_shape",
]
