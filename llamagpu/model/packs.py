"""Packs: texts that go through a model together, and their pooled vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Device, Readback, Tensor
from llamagpu.kernels.pool import pool

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Encoded:
    """A tokenized text: ids, and the token type of each; and how many tokens were cut off its end."""

    ids: tuple[int, ...]
    types: tuple[int, ...] = ()
    cut: int = 0


class PackModel(Protocol):
    """A model that runs packs. Calls are on the device thread.

    Attributes:
        hidden_size: elements of a pooled vector.
        rows: tokens of the largest pack.
    """

    hidden_size: int
    rows: int

    def most(self, lengths: Iterable[int]) -> int:
        """How many of the next texts, of these lengths, one pack takes now; 0 if they must wait."""

    def launch(self, pack: Sequence[Encoded], modes: Sequence[str]) -> list[Readback]:
        """Queue a pack: the pooled vectors of every mode, float32 [texts, hidden], on their way to the host."""

    def clean(self) -> None:
        """Forget keys and values that are not finite: they spoil later packs where texts leave gaps."""

    def free(self) -> None:
        """Free plans, and the buffers that were made later."""


class Pooling:
    """The buffers of pooled vectors, for up to ``rows`` texts of a pack.

    Attributes:
        sequences: u32 [rows, 2], see ``words``.
    """

    def __init__(self, device: Device, rows: int, hidden_size: int):
        self._device, self._hidden = device, hidden_size
        self.sequences = device.empty((rows, 2), "u32", purpose="activations")
        self._out: dict[str, Tensor] = {}

    def write(self, begins: npt.ArrayLike, lengths: Sequence[int], count: int) -> None:
        """Set ``words`` for the next run."""
        self.sequences.head(count).write(self.words(begins, lengths, count))

    @staticmethod
    def words(begins: npt.ArrayLike, lengths: Sequence[int], count: int) -> npt.NDArray[np.uint32]:
        """The first row and the number of rows of each text, with zeros up to ``count`` texts: uint32 [count, 2]."""
        words = np.zeros((count, 2), np.uint32)
        words[: len(lengths)] = np.stack([np.asarray(begins), lengths], axis=1)
        return words

    def pool(self, x: Tensor, count: int, modes: Sequence[str]) -> None:
        """Pool ``count`` texts of f32 [rows, hidden]. Texts without rows may follow the written ones."""
        for mode in modes:
            pool(x, self.sequences.head(count), mode, self.buffer(mode).head(count))

    def read(self, count: int, modes: Sequence[str]) -> list[Readback]:
        """The vectors of the first texts, on their way to the host."""
        return [self.buffer(mode).head(count).numpy_async() for mode in modes]

    def free(self) -> None:
        """Free the buffers."""
        for tensor in (self.sequences, *self._out.values()):
            tensor.free()
        self._out.clear()

    def buffer(self, mode: str) -> Tensor:
        """The pooled vectors of the last run, f32 [texts, hidden]."""
        if mode not in self._out:
            shape = (self.sequences.rows, self._hidden)
            self._out[mode] = self._device.empty(shape, purpose="activations")
        return self._out[mode]
