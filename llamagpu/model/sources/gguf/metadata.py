"""The values of one architecture in a file's metadata, checked as they are read; unread ones are found afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llamagpu.errors import UnsupportedModelError, shown

# Keys that change no result of a forward pass, or that others repeat.
_WITHOUT_EFFECT = frozenset(
    (
        *("vocab_size", "tensor_data_layout", "attention.layer_norm_epsilon", "pooling_type"),
        *("rope.scaling.finetuned", "rope.dimension_count", "attention.key_length", "attention.value_length"),
    )
)


class Metadata:
    """Values under ``<architecture>.``, by the rest of their keys."""

    def __init__(self, architecture: str, fields: Mapping[str, Any]):
        prefix = f"{architecture}."
        self.architecture = architecture
        self._values = {k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)}
        self._read: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether the file has the key."""
        return key in self._values

    def get(self, key: str) -> Any:
        """The value of a key, or None. A list with one value for all layers is that value.

        Raises:
            UnsupportedModelError: the layers differ.
        """
        self._read.add(key)
        value = self._values.get(key)
        if isinstance(value, np.ndarray):
            if len(value) == 0 or (value != value[0]).any():
                raise self.bad(key, "layers that differ are not supported")
            value = value[0].item()
        return value

    def flags(self, key: str, count: int) -> list[bool] | None:
        """A flag for each layer, from a list; None if the value is not a list."""
        value = self._values.get(key)
        if not isinstance(value, np.ndarray):
            return None
        self._read.add(key)
        if len(value) != count:
            raise self.bad(key, f"there are {count} layers")
        return [bool(v) for v in value]

    def integer(self, key: str, default: int | None = None, most: int = 2**31 - 1) -> int:
        """A whole number from 0 to ``most``."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise self.bad(key, f"it must be a whole number up to {most:,}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number. Files store float32: 1e-06 comes back as 1e-06, not as 9.99999997e-07."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise self.bad(key, "it must be a number")
        return float(str(np.float32(value))) if isinstance(value, float) and abs(value) < 3e38 else float(value)

    def bad(self, key: str, why: str) -> UnsupportedModelError:
        """The error for a value that cannot be used."""
        name = f"{self.architecture}.{key}"
        if key not in self._values:
            return UnsupportedModelError(f"The GGUF file has no {name}.", "It is required.", "Convert the model again.")
        value = self._values[key]
        return UnsupportedModelError(
            f"The GGUF file sets {name} to {shown(value.tolist() if isinstance(value, np.ndarray) else value)}: {why}.",
            "It changes the arithmetic, so ignoring it would give wrong text.",
            "Choose another model.",
        )

    def refuse_unread(self) -> None:
        """Raise UnsupportedModelError for a key that nothing read, unless its value is 0, false or empty."""
        for key in sorted(self._values.keys() - self._read - _WITHOUT_EFFECT):
            value = self._values[key]
            if bool(value.any()) if isinstance(value, np.ndarray) else bool(value):
                raise self.bad(key, "this is not supported")
