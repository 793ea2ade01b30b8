"""The paged KV cache of a model: one buffer a layer, a page table for every sequence, and the pages that are free."""

from __future__ import annotations

import numpy as np

from llamagpu.gpu import Device, Tensor
from llamagpu.kernels import PAGE, Cache, cache_columns
from llamagpu.model.config import Config

SLOTS = 32  # sequences that may hold pages at once


def pages_for(tokens: int) -> int:
    """Pages that so many tokens take."""
    return -(-tokens // PAGE)


def kv_bytes(config: Config, tokens: int, dtype: str) -> int:
    """Bytes of cache for ``tokens`` tokens in all layers."""
    page = cache_columns(config.num_key_value_heads, config.head_dim) * (2 if dtype == "f16" else 4)
    return config.num_hidden_layers * page * (pages_for(tokens) + 1)


class PagedCache:
    """Pages for ``pool`` tokens, shared by up to ``SLOTS`` sequences of up to ``context`` tokens.

    One page more takes what padding rows write: the table of the slot ``dump`` has nothing else.
    """

    def __init__(self, device: Device, config: Config, context: int, pool: int, dtype: str):
        count = pages_for(pool)
        self._device, self._free = device, list(range(count - 1, -1, -1))
        self._slots = list(range(SLOTS - 1, -1, -1))
        self.dump = SLOTS
        self.total = count
        self._table = np.full((SLOTS + 1, -(-pages_for(context) // 4) * 4), count, np.uint32)
        self.table: Tensor = device.tensor(self._table, "u32", purpose="kv")
        columns = cache_columns(config.num_key_value_heads, config.head_dim)
        self.layers = [
            Cache(
                device.empty((count + 1, columns), dtype, purpose="kv"),
                self.table,
                config.num_key_value_heads,
                config.head_dim,
            )
            for _ in range(config.num_hidden_layers)
        ]

    def fits(self, tokens: int, held: list[int] | None = None) -> bool:
        """Whether a sequence of so many tokens can be taken in now; ``held`` are the pages of one that grows."""
        if held is None:
            return bool(self._slots) and pages_for(tokens) <= len(self._free)
        return pages_for(tokens) - len(held) <= len(self._free)

    def take(self, tokens: int) -> tuple[int, list[int]]:
        """A slot, and the pages now in its table. Ask ``fits`` first."""
        slot = self._slots.pop()
        return slot, self.grow(slot, [], tokens)

    def grow(self, slot: int, held: list[int], tokens: int) -> list[int]:
        """The pages of a slot that keeps those it has and gets room for so many tokens."""
        pages = [*held, *(self._free.pop() for _ in range(pages_for(tokens) - len(held)))]
        self._table[slot] = self.total
        self._table[slot, : len(pages)] = pages
        part = self.table.part
        self._device.write_bytes(part.buffer, part.offset + slot * self.table.stride * 4, self._table[slot])
        return pages

    def give(self, slot: int, pages: list[int]) -> None:
        """Take a finished sequence's slot and pages back."""
        self._slots.append(slot)
        self._free.extend(pages)
