"""Reading the values of a config by name, with their defaults, checked for type and range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llamagpu.errors import UnsupportedModelError, shown

if TYPE_CHECKING:
    from llamagpu.model.rope import Rope

# The largest values that a config may state; a file with larger ones is broken or hostile.
_MOST = {
    "vocab_size": 2**22,
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "shared_intermediate_size": 2**20,
    "num_hidden_layers": 1024,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 256,
    "max_position_embeddings": 2**24,
    "original_max_position_embeddings": 2**24,
    "sliding_window": 2**24,
    "sliding_window_pattern": 1024,
    "no_rope_layer_interval": 1024,
    "query_pre_attn_scalar": 2**20,
}
# Numbers above 0, which may be null where the default is.
_NUMBERS = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")
_CAPS = ("final_logit_softcapping", "attn_logit_softcapping")
# Activations by their names in configs, and the files of shaders/lib/activation.
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu2": "relu2",
}


def bad_config(problem: str) -> UnsupportedModelError:
    """The error for a value that is missing, of a wrong type, or out of its range."""
    return UnsupportedModelError(f"config.json: {problem}", "", "Check the file, or download the model again.")


class Values:
    """The values of a config, with an architecture's defaults; None counts as missing. ``ropes`` has the rotary
    embedding by layer type."""

    def __init__(self, raw: Mapping[str, Any], defaults: Mapping[str, Any]):
        self._raw, self._defaults = raw, defaults
        self.ropes: dict[str, Rope] = {}

    def __getitem__(self, key: str) -> Any:
        """A checked value of a key that only some architectures read; null is None where that is allowed."""
        if key in _NUMBERS:
            return self.number(key, 0.0, 1e6)
        if key in _CAPS:
            # An explicit null switches a cap off, whatever the default.
            value = self._raw[key] if key in self._raw else self._defaults.get(key)
            return None if value is None else Values({key: value}, {}).number(key, 0.0, 1e6)
        if isinstance(self._defaults.get(key), bool):
            return self.flag(key)
        if key == "sliding_window":
            return self._window()
        if key == "no_rope_layers":
            return self._flags(key)
        if key == "max_window_layers":
            return self._count(key)
        if key == "position_embedding_type":
            return self.get(key)
        if key == "sliding_window_pattern":
            return self._pattern(key)
        return self.integer(key)

    def rope(self, layer_type: str) -> Rope:
        """The rotary embedding of a layer type."""
        return self.ropes[layer_type]

    def get(self, key: str) -> Any:
        """A value as given, or its default."""
        value = self._raw.get(key)
        return self._defaults.get(key) if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number from 1 to the largest that is sensible for the key."""
        value = self.get(key)
        value = default if value is None else value
        if value is None:
            raise bad_config(f"{key} is missing.")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST[key]:
            raise bad_config(f"{key} is {shown(value)}; it must be a whole number from 1 to {_MOST[key]:,}.")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A number above ``low``, at most ``high``."""
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value <= high:
            raise bad_config(f"{key} is {shown(value)}; it must be above {low:g} and at most {high:g}.")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self.get(key)
        if not isinstance(value, bool):
            raise bad_config(f"{key} is {shown(value)}; it must be true or false.")
        return value

    def token_id(self, key: str, vocab: int) -> int | None:
        """A token id of the vocabulary, or None."""
        value = self.get(key)
        return None if value is None else _token_id(value, key, vocab)

    def token_ids(self, key: str, vocab: int) -> tuple[int, ...]:
        """Token ids of the vocabulary: one, several or none."""
        value = self.get(key)
        ids = value if isinstance(value, list) else [value]
        return tuple(_token_id(i, key, vocab) for i in ids if i is not None)

    def activation(self) -> str:
        """The activation of ``hidden_act``, or of ``hidden_activation`` where the architecture reads that, by its file.

        Raises:
            UnsupportedModelError: it is not supported.
        """
        name = self.get("hidden_activation" if "hidden_activation" in self._defaults else "hidden_act")
        if name == "gelu" and self._defaults.get("hidden_act") == "gelu_pytorch_tanh":
            name = "gelu_pytorch_tanh"  # Gemma's first configs say gelu and mean its tanh form
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            raise UnsupportedModelError(
                f"The activation {shown(name)} (hidden_act) is not supported.",
                f"Supported: {', '.join(_ACTIVATIONS)}.",
                "Choose another model.",
            )
        return _ACTIVATIONS[name]

    def _window(self) -> int | None:
        """``sliding_window``: an explicit null is no window, whatever the default."""
        value = self._raw["sliding_window"] if "sliding_window" in self._raw else self._defaults.get("sliding_window")
        return None if value is None else Values({"sliding_window": value}, {}).integer("sliding_window")

    def _count(self, key: str) -> int:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise bad_config(f"{key} is {shown(value)}; it must be a whole number, 0 or above.")
        return value

    def _flags(self, key: str) -> list[int] | None:
        """A list of 0 and 1, one for every layer, or None."""
        value, layers = self.get(key), self.integer("num_hidden_layers")
        if value is not None and not (
            isinstance(value, list) and len(value) >= layers and all(v in (0, 1) for v in value)
        ):
            raise bad_config(f"{key} is {shown(value)}; it must be a list of 0 and 1 for all {layers} layers.")
        return value or None

    def _pattern(self, key: str) -> int | str | None:
        value = self.get(key)
        if isinstance(value, str) and value and set(value) <= {"L", "G"}:
            return value
        return None if not value and not isinstance(value, str) else self.integer(key)


def _token_id(value: Any, key: str, vocab: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab:
        raise bad_config(f"{key} is {shown(value)}; token ids run from 0 to {vocab - 1}.")
    return value
