"""The paged KV cache: one buffer a layer, a page table row for every sequence, and pages shared by equal prefixes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llamagpu.gpu import Recorder, Tensor
from llamagpu.kernels.kv_write import PAGE, Cache, cache_columns
from llamagpu.model.config import Config

SLOTS = 32  # sequences that may hold pages at once, unless fewer are asked for
ROOT = 0  # the id of the empty prefix


def pages_for(tokens: int) -> int:
    """Pages that hold this many tokens."""
    return -(-tokens // PAGE)


def held_tokens(config: Config, tokens: int, rows: int) -> int:
    """Tokens that the cache holds of a sequence of ``tokens`` tokens, whose prompt runs in chunks of up to ``rows``.

    If all layers have a sliding window, its pages are used in turns: a chunk overwrites no position that one of its own
    rows still sees.
    """
    if config.window is None:
        return tokens
    return min(tokens, pages_for(config.window + rows) * PAGE)


def kv_bytes(config: Config, tokens: int, dtype: str) -> int:
    """Bytes of cache for ``tokens`` tokens in all layers."""
    return config.num_hidden_layers * layer_bytes(config, tokens, dtype)


def layer_bytes(config: Config, tokens: int, dtype: str) -> int:
    """Bytes of cache for ``tokens`` tokens in one layer, which is one binding."""
    page = cache_columns(config.num_key_value_heads, config.head_dim) * (2 if dtype == "f16" else 4)
    return page * (pages_for(tokens) + 1)


def table_columns(context: int) -> int:
    """Columns of the page table, for sequences of up to ``context`` tokens."""
    return -(-pages_for(context) // 4) * 4


def most_tokens(config: Config, largest_binding: int) -> int:
    """Tokens of a float32 cache that one binding holds."""
    return (largest_binding // layer_bytes(config, 0, "f32") - 1) * PAGE


@dataclass(frozen=True)
class Pages:
    """The slot of a sequence in the page table, its pages in order, the number of its tokens they already hold, and how
    many of these are exact (``PagedCache``). Pages that are used in turns (``held_tokens``) cannot be shared, and hold
    any number of tokens. ``root`` is that of ``PagedCache.take``."""

    slot: int
    pages: tuple[int, ...]
    cached: int = 0
    in_turns: bool = False
    exact: int = 0
    root: int = ROOT


@dataclass(frozen=True)
class Known:
    """A page that the cache can find: the tokens in it, and the one before it by its place in a list of such pages (-1
    is none)."""

    tokens: tuple[int, ...]
    before: int
    exact: bool


class PagedCache:
    """Pages for ``pool`` tokens, shared by up to ``slots`` sequences of up to ``context`` tokens.

    Pages are counted by reference. A full page is known by its tokens and all tokens before them. It stays known after
    its sequences have ended, until another sequence needs the memory; the least recently used page is taken first. One
    more page, in the slot ``dump``, takes the writes of padding rows. Prefill chunks have up to ``rows`` rows.

    Keys and values depend on a sequence's adapter, too: pages of another ``root`` are other pages.

    A page is exact if prefill wrote it and all pages before it: it holds the bits that the prefill of any prompt with
    these tokens gives. Decode steps add up in another order.
    """

    def __init__(
        self, device: Recorder[Any], config: Config, context: int, pool: int, dtype: str, rows: int, slots: int = SLOTS
    ):
        self.total, self.dump = pages_for(pool), slots
        self._config, self._rows = config, rows
        self._device = device
        self._slots = list(range(slots - 1, -1, -1))
        self._references = [0] * self.total
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(self.total))  # the next to be taken first
        self._known: dict[tuple[int, tuple[int, ...]], int] = {}  # (id of the prefix before, tokens) -> page
        self._keys: dict[int, tuple[int, tuple[int, ...]]] = {}  # the reverse
        self._ids: dict[int, int] = {}  # page -> id of the prefix that ends with it
        self._exact: set[int] = set()  # of the known pages
        self._next_id = ROOT + 1
        self._table = np.full((slots + 1, table_columns(context)), self.total, np.uint32)
        self.table: Tensor = device.tensor(self._table, "u32", purpose="kv")
        columns = cache_columns(config.num_key_value_heads, config.head_dim)
        self.layers = [
            Cache(
                device.empty((self.total + 1, columns), dtype, purpose="kv"),
                self.table,
                config.num_key_value_heads,
                config.head_dim,
            )
            for _ in range(config.num_hidden_layers)
        ]

    @property
    def free_pages(self) -> int:
        """Pages that no sequence holds."""
        return len(self._free)

    @property
    def free_slots(self) -> int:
        """Sequences that can still be admitted."""
        return len(self._slots)

    def pages_of(self, tokens: int) -> int:
        """Pages that a sequence of this many tokens holds."""
        return pages_for(held_tokens(self._config, tokens, self._rows))

    def take(
        self,
        tokens: int,
        prefix: Sequence[int] = (),
        most: int = 0,
        spare: int = 0,
        exact: bool = False,
        root: int = ROOT,
    ) -> Pages | None:
        """A slot with pages for ``tokens`` tokens, or None if they do not fit now, or would leave less than ``spare``
        free pages. The sequence may ``grow`` up to ``most`` tokens.

        Known pages that hold the beginning of ``prefix`` are shared, or only the exact ones. Its last token is never
        taken from the cache, because its row must run to give the next token. ``root`` stands for all else that keys
        and values depend on: 0, or a negative number.
        """
        most = max(tokens, most)
        in_turns = held_tokens(self._config, most, self._rows) < most
        held = self.pages_of(most) if in_turns else pages_for(tokens)
        shared = [] if in_turns else self._find(prefix, exact, root)
        fresh = held - len(shared)
        if not self._slots or fresh + spare > len(self._free) - sum(page in self._free for page in shared):
            return None
        for page in shared:
            self._references[page] += 1
            self._free.pop(page, None)
        pages = (*shared, *(self._take_page() for _ in range(fresh)))
        slot = self._slots.pop()
        self._table[slot] = self.total
        count = pages_for(most) if in_turns else len(pages)
        self._table[slot, :count] = np.resize(pages, count)
        self._write(slot, 0, self._table.shape[1])
        known = sum(page in self._exact for page in shared)
        return Pages(slot, pages, len(shared) * PAGE, in_turns, known * PAGE, root)

    def grow(self, held: Pages, tokens: int) -> Pages | None:
        """A sequence's pages with room for ``tokens`` tokens; None if they do not fit now."""
        begin, end = len(held.pages), pages_for(tokens)
        if held.in_turns or end <= begin:
            return held
        if end - begin > len(self._free):
            return None
        more = tuple(self._take_page() for _ in range(end - begin))
        self._table[held.slot, begin:end] = more
        self._write(held.slot, begin, end)
        return replace(held, pages=held.pages + more)

    def _write(self, slot: int, begin: int, end: int) -> None:
        """Write the entries ``begin`` to ``end`` of a slot's row of the table."""
        part, place = self.table.part, slot * self.table.stride + begin
        self._device.memory.write(part.buffer, part.offset + place * 4, self._table[slot, begin:end])

    def give(self, held: Pages, tokens: Sequence[int] = (), exact: int = 0) -> None:
        """Take a finished sequence's slot and pages back. They hold the keys and values of ``tokens``, of which the
        first ``exact`` are exact."""
        if not held.in_turns:
            self._remember(held, tokens, exact)
        self._slots.append(held.slot)
        for page in reversed(held.pages):  # so that the end of a prefix is taken before its beginning
            self._references[page] -= 1
            if not self._references[page]:
                self._free[page] = None
                if page not in self._keys:
                    self._free.move_to_end(page, last=False)

    def _find(self, prefix: Sequence[int], exact: bool, root: int) -> list[int]:
        pages, before = [], root
        for begin in range(0, (len(prefix) - 1) // PAGE * PAGE, PAGE):
            page = self._known.get((before, tuple(prefix[begin : begin + PAGE])))
            if page is None or (exact and page not in self._exact):
                break
            pages.append(page)
            before = self._ids[page]
        return pages

    def _remember(self, held: Pages, tokens: Sequence[int], exact: int) -> None:
        before = held.root
        for number in range(len(tokens) // PAGE):
            key = (before, tuple(tokens[number * PAGE : (number + 1) * PAGE]))
            page, own = self._known.get(key), held.pages[number]
            better = (number + 1) * PAGE <= exact and page not in self._exact
            if (page is None or better) and own in self._keys and own != page:  # it is the end of another prefix
                return
            if page is None or (better and own != page):
                page = self._enter(own, key, better)
            before = self._ids[page]

    def _take_page(self) -> int:
        page, _ = self._free.popitem(last=False)
        if page in self._keys:
            del self._known[self._keys.pop(page)], self._ids[page]
            self._exact.discard(page)
        self._references[page] = 1
        return page

    def _enter(self, page: int, key: tuple[int, tuple[int, ...]], exact: bool) -> int:
        """Make a page known, in place of one that is known by the key."""
        old = self._known.get(key)
        if old is None:
            self._ids[page] = self._next_id
            self._next_id += 1
        else:
            del self._keys[old]
            self._ids[page] = self._ids.pop(old)  # so that the pages after it are still found
            if not self._references[old]:
                self._free.move_to_end(old, last=False)
        self._known[key], self._keys[page] = page, key
        if exact:
            self._exact.add(page)
        return page

    def known(self) -> list[tuple[int, Known]]:
        """All pages of sequences without adapters that can be found, by their numbers: the latest used first, but each
        after the page before it."""
        page_of = {id: page for page, id in self._ids.items()}
        held = [page for page in self._keys if page not in self._free]
        places: dict[int, int] = {}
        for page in (*held, *reversed(self._free)):
            chain: list[int] = []
            at: int | None = page if page in self._keys else None
            while at is not None and at not in places:
                chain.append(at)
                before = self._keys[at][0]
                at = page_of.get(before)
                if at is None and before != ROOT:  # the page before it was taken, or it is of an adapter
                    chain.clear()
            for one in reversed(chain):
                places[one] = len(places)
        place_of = {self._ids[page]: place for page, place in places.items()} | {ROOT: -1}
        keys = ((page, *self._keys[page]) for page in places)
        return [(page, Known(tokens, place_of[before], page in self._exact)) for page, before, tokens in keys]

    def adopt(self, found: Sequence[Known], fill: Callable[[list[tuple[int, int]]], None]) -> int:
        """Make pages known that ``known`` gave in another cache, the first ones, as many as free pages hold nothing
        known; returns their number. ``fill`` writes keys and values: it gets pairs of (place in ``found``, page)."""
        spare = iter([page for page in self._free if page not in self._keys])
        prefixes: dict[int, int] = {-1: ROOT}  # by places in ``found``, the ids of the prefixes that end there
        next_id = self._next_id
        new: list[tuple[int, int, tuple[int, tuple[int, ...]]]] = []
        for place, one in enumerate(found):
            if one.before not in prefixes:
                continue
            key = prefixes[one.before], one.tokens
            if key in self._known:
                prefixes[place] = self._ids[self._known[key]]
            elif (page := next(spare, None)) is not None:
                prefixes[place] = next_id + len(new)
                new.append((place, page, key))
        fill([(place, page) for place, page, _ in new])
        for place, page, key in new:
            self._enter(page, key, found[place].exact)
        for _, page, _ in reversed(new):
            self._free.move_to_end(page)
        return len(new)
