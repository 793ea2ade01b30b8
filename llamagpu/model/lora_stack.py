"""The LoRA adapters of a model on its device, and the bias by rows that they give a product (``kernels.lora``)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.errors import OutOfMemoryError, UsageError, shown
from llamagpu.gpu import Part, Recorder, Tensor, row_items, tensor_bytes
from llamagpu.kernels.lora import RECORD_WORDS, SLOT_WORDS, Adapters, block, block_places, lora_down, lora_up, record
from llamagpu.kernels.product import Source
from llamagpu.model.layout import Key, Layout
from llamagpu.model.lora import Lora, columns_of
from llamagpu.model.sources.lora import Pair
from llamagpu.model.weights import Weights

_PLACE = 16  # bytes of a vec4 of a pool
_PURPOSE = "adapters"


@dataclass
class _Held:
    """An adapter on the device: its number in the records, and where its blocks begin in the pool of each layer."""

    lora: Lora
    number: int
    begins: dict[int, int] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)


@dataclass
class _Buffers:
    """What depends on the adapters that are held.

    Attributes:
        pools: by layer, f32 [places, 4]: the blocks of all adapters.
        parts: the adapters of each weight tensor that some of them change.
        t, out: scratch memory of the two kernels.
    """

    pools: dict[int, Tensor] = field(default_factory=dict)
    parts: dict[Tensor, Adapters] = field(default_factory=dict)
    made: list[Tensor] = field(default_factory=list)
    t: Tensor | None = None
    out: Tensor | None = None

    def free(self) -> None:
        """Free the memory."""
        for tensor in self.made:
            tensor.free()
        self.made.clear()


class LoraStack:
    """The adapters of one model. Calls are on the device thread.

    Adding one uploads its matrices alone: those of the others are copied on the device. All change at once, or, after
    an error, nothing.

    Args:
        slots: of the page table. A sequence's slot says which adapter its rows use.
        rows: the most rows of a plan.
    """

    def __init__(self, device: Recorder[Any], layout: Layout, weights: Weights, slots: int, rows: int):
        self._device, self._layout, self._weights = device, layout, weights
        self._slot_count, self._rows = slots, rows
        self._held: dict[str, _Held] = {}
        self._buffers = _Buffers()
        self._slots: Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that are held."""
        return tuple(self._held)

    def add(self, named: Mapping[str, Lora]) -> None:
        """Put adapters on the device, under names that are not held yet.

        Raises:
            OutOfMemoryError: they do not fit the memory, or one layer's do not fit a binding.
        """
        if not named:
            return
        if self._slots is None:
            self._slots = self._device.empty((self._slot_count, SLOT_WORDS), "u32", purpose=_PURPOSE)
        held = {name: replace(h) for name, h in self._held.items()}
        for name, lora in named.items():
            used = {h.number for h in held.values()}
            held[name] = _Held(lora, next(n for n in range(len(used) + 1) if n not in used))
        self._change(held)

    def remove(self, name: str) -> None:
        """Take an adapter from the device, which no sequence uses any more."""
        self._change({other: replace(h) for other, h in self._held.items() if other != name})

    def choose(self, slot: int, name: str | None, scale: float) -> None:
        """Set which adapter the rows of a slot use from now on.

        Raises:
            UsageError: no adapter has the name.
        """
        if self._slots is None and name is None:
            return
        words = np.zeros(SLOT_WORDS, np.uint32)
        if name is not None:
            words[:2] = self._of(name).number + 1, np.float32(scale).view(np.uint32)
        assert self._slots is not None
        part = self._slots.part
        self._device.memory.write(part.buffer, part.offset + slot * 4 * SLOT_WORDS, words)

    def root(self, name: str | None, scale: float) -> int:
        """What the pages of a sequence with this adapter descend from (``PagedCache``): 0 without one, or else a
        negative number that depends on the adapter's matrices and the scale."""
        if name is None:
            return 0
        digest = hashlib.sha256(self._of(name).lora.file.digest + np.float32(scale).tobytes()).digest()
        return -1 - int.from_bytes(digest[:8], "little")

    def bias(self, source: Source, w: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor | None:
        """The bias of ``source Wᵀ`` with the adapters of its rows: f32 [rows, n], or the bias as it is if no adapter
        changes W."""
        own = self._buffers.parts.get(w)
        if own is None:
            return bias
        assert self._buffers.t is not None
        assert self._buffers.out is not None
        t, memory = self._buffers.t.head(rows.rows), self._buffers.out.part
        window = Part(memory.buffer, 0, rows.rows * row_items(w.rows, "f32") * 4, 0, rows.rows)
        lora_down(source, own, rows, t)
        return lora_up(t, own, rows, bias, Tensor(w.device, (rows.rows, w.rows), "f32", (window,)))

    def free(self) -> None:
        """Free the memory."""
        self._buffers.free()
        self._held.clear()
        if self._slots is not None:
            self._slots.free()

    def _of(self, name: str) -> _Held:
        if name not in self._held:
            raise unknown(name, self._held)
        return self._held[name]

    # --- changing what is held ---------------------------------------------------------------

    def _change(self, held: dict[str, _Held]) -> None:
        """Make the buffers of other adapters than before, and then use them."""
        new = _Buffers()
        try:
            keys = [key for key in self._layout.matrices if any(key in h.lora.pairs for h in held.values())]
            for layer in dict.fromkeys(key.layer for key in keys):
                assert layer is not None
                self._fill(layer, held, new)
            self._describe(keys, held, new)
        except BaseException:
            new.free()
            raise
        self._buffers.free()
        self._held, self._buffers = held, new

    def _fill(self, layer: int, held: dict[str, _Held], new: _Buffers) -> None:
        """The pool of a layer: copies of the blocks that were held before, and uploads of the others."""
        blocks: list[npt.NDArray[np.float32] | Part] = []
        end = 0
        for name, h in held.items():
            if (before := self._held.get(name)) is not None and layer in before.begins:
                part, first = self._buffers.pools[layer].part, before.begins[layer]
                blocks.append(Part(part.buffer, first * _PLACE, before.sizes[layer] * _PLACE, 0, before.sizes[layer]))
            else:
                keys = [key for key in h.lora.pairs if key.layer == layer]
                own = [self._block(h.lora, key) for key in sorted(keys, key=lambda key: key.role)]
                if not own:
                    continue
                blocks.append(np.concatenate(own))
            size = blocks[-1].rows if isinstance(blocks[-1], Part) else len(blocks[-1])
            h.begins, h.sizes = h.begins | {layer: end}, h.sizes | {layer: size}
            end += size
        pool = new.pools[layer] = self._empty((end, 4), new)
        if len(pool.parts) > 1:
            what = f"The adapters of one layer take {end * _PLACE / 1e6:,.1f} MB, more than one binding holds."
            raise OutOfMemoryError(what, "", "Load fewer adapters at once, or some of a lower rank.")
        at = 0
        for one in blocks:
            if isinstance(one, Part):
                self._device.memory.copy(one, Part(pool.part.buffer, at, one.size, 0, one.rows))
            else:
                self._device.memory.write(pool.part.buffer, at, np.ascontiguousarray(one).reshape(-1))
            at += one.size if isinstance(one, Part) else one.nbytes

    def _describe(self, keys: list[Key], held: dict[str, _Held], new: _Buffers) -> None:
        """The records of the adapters for every product, and scratch memory."""
        if not keys:
            return
        capacity = _capacity(1 + max(h.number for h in held.values()))
        words = np.zeros((len(keys), capacity, RECORD_WORDS), np.uint32)
        ranks: dict[Key, int] = {}
        for h in held.values():
            ends = dict(h.begins)
            for key in sorted(h.lora.pairs, key=lambda key: key.role):
                assert key.layer is not None
                pairs, k = h.lora.pairs[key], self._layout.matrices[key].columns
                words[keys.index(key), h.number] = record(pairs, k, ends[key.layer])
                ranks[key] = max(ranks.get(key, 0), _rank(pairs))
                ends[key.layer] += block_places(pairs, columns_of(self._layout.matrices[key]), k)
        table = self._empty((len(keys) * capacity, RECORD_WORDS), new, "u32")
        table.write(words.reshape(-1, RECORD_WORDS))
        new.t = self._empty((self._rows, max(ranks.values())), new)
        new.out = self._empty((self._rows, max(self._layout.matrices[key].rows for key in keys)), new)
        for i, key in enumerate(keys):
            assert key.layer is not None
            assert self._slots is not None
            window, matrix = table.rows_between(i * capacity, (i + 1) * capacity), self._layout.matrices[key]
            w = getattr(self._weights.layers[key.layer], key.role)
            new.parts[w] = Adapters(new.pools[key.layer], window, self._slots, columns_of(matrix), ranks[key])

    def _block(self, lora: Lora, key: Key) -> npt.NDArray[np.float32]:
        matrix = self._layout.matrices[key]
        return block(lora.changes(key), columns_of(matrix), matrix.columns)

    def _empty(self, shape: tuple[int, int], new: _Buffers, dtype: str = "f32") -> Tensor:
        tensor = self._device.empty(shape, dtype, purpose=_PURPOSE)
        new.made.append(tensor)
        return tensor


def stack_bytes(loras: Collection[Lora], slots: int, rows: int) -> int:
    """Bytes that a ``LoraStack`` takes for adapters which are added together; ``slots`` and ``rows`` are its own."""
    if not loras:
        return 0
    matrices = next(iter(loras)).layout.matrices
    changed = [(matrices[key], pairs) for lora in loras for key, pairs in lora.pairs.items()]
    blocks = sum(block_places(pairs, columns_of(matrix), matrix.columns) for matrix, pairs in changed)
    records = len({key for lora in loras for key in lora.pairs}) * _capacity(len(loras))
    scratch = max(_rank(pairs) for _, pairs in changed), max(matrix.rows for matrix, _ in changed)
    shapes = ((blocks, 4), (slots, SLOT_WORDS), (records, RECORD_WORDS), *((rows, columns) for columns in scratch))
    return sum(tensor_bytes(*shape) for shape in shapes)


def _capacity(adapters: int) -> int:
    """Records of a product: windows begin at 256 bytes."""
    return -(-adapters // 4) * 4


def _rank(pairs: tuple[Pair | None, ...]) -> int:
    return sum(p.rank for p in pairs if p is not None)


def unknown(name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that no adapter has."""
    names = ", ".join(known)
    why = f"Loaded adapters: {names}." if names else "No adapter is loaded."
    return UsageError(f"There is no adapter {shown(name)}.", why, "Load it with LLM(..., adapters=…) or add_adapter.")
