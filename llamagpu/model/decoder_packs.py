"""Packs of a decoder: texts that share a pass over a prompt's kernels, for their pooled hidden states.

Every text has a slot and pages of the cache for the time of the pass. Texts begin at multiples of ``PACK_ALIGN`` rows,
so that no workgroup of the attention sees two of them, and every product is the one for many vectors: a text has the
same bits alone and in any pack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from llamagpu.errors import OutOfMemoryError
from llamagpu.gpu import CommandList, Copy, Device, Plan, Readback, copy_rows
from llamagpu.model.cache import Pages, held_tokens, pages_for
from llamagpu.model.forward import bucket
from llamagpu.model.model import Model
from llamagpu.model.packs import Encoded, Pooling
from llamagpu.model.step import Chunk, pack_rows_of


class DecoderPacks:
    """The passes of one model; see ``PackModel``. It shares the cache and the activations with generation.

    Args:
        busy: whether sequences are being generated, whose pages will be free later.
        enter: called before a pass, which overwrites the state of the steps.
        segment_work: the most multiply-adds of a submission.
    """

    def __init__(
        self,
        device: Device,
        model: Model,
        busy: Callable[[], bool],
        enter: Callable[[], None],
        segment_work: Callable[[], float],
    ):
        self._device, self._model, self._forward = device, model, model.forward
        self._busy, self._enter, self._segment_work = busy, enter, segment_work
        self.hidden_size, self.rows = model.config.hidden_size, model.sizes.rows
        self._pooling = Pooling(device, self.rows, self.hidden_size)
        self._plans: list[Plan] = []
        self._commands: dict[tuple[int, tuple[str, ...]], CommandList] = {}

    def most(self, lengths: Iterable[int]) -> int:
        """See ``PackModel.most``. A text of more than ``rows`` tokens runs alone, in chunks.

        Raises:
            OutOfMemoryError: the cache has no room, and no generation that ends would make some.
        """
        cache, count, rows, pages = self._model.cache, 0, 0, 0
        for length in lengths:
            pages += pages_for(held_tokens(self._model.config, length, self.rows))
            if count == cache.free_slots or pages > cache.free_pages or (count and rows + length > self.rows):
                break
            count, rows = count + 1, rows + pack_rows_of(length)
        if not count and not self._busy():
            free = f"{cache.free_pages} pages and {cache.free_slots} slots of the cache are free."
            raise OutOfMemoryError("The cache has no room for a text now.", free, "Close bound sessions of this model.")
        return count

    def launch(self, pack: Sequence[Encoded], modes: Sequence[str]) -> list[Readback]:
        """See ``PackModel.launch``. The pages are given back at once: the queue runs in order."""
        self._enter()
        held: list[Pages] = []
        try:
            for text in pack:
                pages = self._model.cache.take(len(text.ids))
                assert pages is not None  # ``most`` has counted them
                held.append(pages)
            if len(pack[0].ids) > self.rows:
                return self._long(pack[0], held[0], tuple(modes))
            return self._short(pack, held, tuple(modes))
        finally:
            for pages in held:
                self._model.cache.give(pages)

    def clean(self) -> None:
        """See ``PackModel.clean``. No row reads another text's positions, or gaps."""

    def free(self) -> None:
        """Free plans and buffers."""
        for plan in self._plans:
            plan.free()
        self._plans.clear()
        self._commands.clear()
        self._pooling.free()

    def _short(self, pack: Sequence[Encoded], held: Sequence[Pages], modes: tuple[str, ...]) -> list[Readback]:
        """All texts of a pack in one pass."""
        state, lengths = self._forward.state, [len(text.ids) for text in pack]
        rows = bucket(min(sum(map(pack_rows_of, lengths)), self.rows))
        chunks = [Chunk(text.ids, 0, pages.slot) for text, pages in zip(pack, held, strict=True)]
        begins = state.write_prompts(chunks, rows)
        self._pooling.write(begins, lengths, rows)
        self._commands_for(rows, modes).run()
        return self._pooling.read(len(pack), modes)

    def _commands_for(self, rows: int, modes: tuple[str, ...]) -> CommandList:
        """A pass over ``rows`` rows and its pooling, in one submission if the work allows it."""
        if (rows, modes) not in self._commands:
            forward, pooling = self._forward, self._pooling
            hidden = forward.hidden_states.head(rows)
            pool = self._device.record(lambda: pooling.pool(hidden, rows, modes), forward.tuning)
            self._plans.append(pool)
            steps = [forward.prefill(rows), forward.last_norm(rows), pool]
            self._commands[rows, modes] = CommandList(self._device.memory, steps, self._segment_work())
        return self._commands[rows, modes]

    def _long(self, text: Encoded, pages: Pages, modes: tuple[str, ...]) -> list[Readback]:
        """One text in chunks, whose hidden states are collected in a tensor of its own."""
        forward, count = self._forward, len(text.ids)
        hidden = self._device.empty((count, self.hidden_size), purpose="activations")
        pooling = Pooling(self._device, 1, self.hidden_size)
        try:
            for first in range(0, count, self.rows):
                chunk = text.ids[first : first + self.rows]
                rows = bucket(len(chunk))
                forward.state.write_prompt(chunk, first, pages.slot, rows)
                copies = copy_rows(forward.hidden_states, 0, hidden, first, first + len(chunk))
                steps: list[Plan | Copy] = [forward.prefill(rows), forward.last_norm(rows), *copies]
                CommandList(self._device.memory, steps, self._segment_work()).run()
            pooling.write([0], [count], 1)
            pooling.pool(hidden, 1, modes)
            return pooling.read(1, modes)
        finally:
            hidden.free()
            pooling.free()
