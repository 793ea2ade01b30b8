"""Reading the values of a config by name, with their defaults, checked for type and range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamagpu.errors import UnsupportedModelError, shown

# The largest values that a config may state; a file with larger ones is broken or hostile.
_MOST = {
    "vocab_size": 2**22,
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_hidden_layers": 1024,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 256,
    "max_position_embeddings": 2**24,
}


def bad_config(problem: str) -> UnsupportedModelError:
    """The error for a value that is missing, of a wrong type, or out of its range."""
    return UnsupportedModelError(f"config.json: {problem}", "", "Check the file, or download the model again.")


class Values:
    """The values of a config, with an architecture's defaults; None counts as missing."""

    def __init__(self, raw: Mapping[str, Any], defaults: Mapping[str, Any]):
        self._raw, self._defaults = raw, defaults

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


def _token_id(value: Any, key: str, vocab: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab:
        raise bad_config(f"{key} is {shown(value)}; token ids run from 0 to {vocab - 1}.")
    return value
