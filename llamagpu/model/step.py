"""The state of a step: its rows, written to the GPU, and its sampled tokens, read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import Part, Recorder, Slot, Tensor
from llamagpu.kernels.attention_paged import PACK_ALIGN
from llamagpu.kernels.sampling import Sampler, make_sampler, sampler_columns
from llamagpu.kernels.step import NO_END, PROMPT_BIT, ROW_WORDS, Sampled, Settings, no_cuts, read_sampled, step_rows

Words = npt.NDArray[np.uint32]
MOST_STEPS = 8  # of one submission


@dataclass(frozen=True)
class Row:
    """One sequence in a step: its newest token, that token's position, and its slot in the page table.

    Attributes:
        settings: how the next token is chosen.
        last_position: the position of the last token that may be made.
        stop_ids: tokens that end the sequence.
    """

    token: int
    position: int
    slot: int
    settings: Settings = field(default_factory=Settings)
    last_position: int = NO_END
    stop_ids: Sequence[int] = ()


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of a sequence in a prompt's pass; ``first`` is the position of the first one."""

    tokens: Sequence[int]
    first: int
    slot: int


def pack_rows_of(tokens: int) -> int:
    """Rows that a chunk takes in a pass of several: no workgroup of the attention sees two sequences."""
    return -(-tokens // PACK_ALIGN) * PACK_ALIGN


@dataclass(frozen=True)
class Reading:
    """Results on their way to the host: staging slot, bytes of each step, number of likeliest tokens for each row, and
    steps."""

    slot: Slot
    size: int
    wanted: tuple[int, ...]
    steps: int = 1


def state_shapes(rows: int, sampled: int, slots: int, vocab: int) -> list[tuple[int, int]]:
    """Rows and columns of everything that a ``StepState`` allocates; all items have 4 bytes."""
    own = [(rows, ROW_WORDS), (sampled, ROW_WORDS), (1, rows), (1, ROW_WORDS)]
    return own + [(sampled, n) for n in sampler_columns(vocab).values()] + 2 * [(slots, vocab)]


class StepState:
    """The buffers of a step's state, for at most ``rows`` rows, of which at most ``sampled`` sample a token.

    Writes and reads run on the device thread. Padding rows use the slot ``dump``. ``ids`` and ``broken`` take token ids
    that are on the GPU, see ``kernels.step_ids``.
    """

    def __init__(self, device: Recorder[Any], rows: int, sampled: int, slots: int, vocab: int, dump: int):
        self._memory, self.dump, self._vocab = device.memory, dump, vocab
        self.rows = device.empty((rows, ROW_WORDS), "u32", purpose="activations")
        self.picks = device.empty((sampled, ROW_WORDS), "u32", purpose="activations")
        self.ids = device.empty((1, rows), "u32", purpose="activations")
        self.broken = device.empty((1, ROW_WORDS), "u32", purpose="activations")
        self.sampler: Sampler = make_sampler(device, sampled, slots, vocab)
        self._biased: set[int] = set()  # slots whose row of the bias is not zero

    def write_prompt(self, tokens: Sequence[int], first: int, slot: int, rows: int) -> None:
        """Consecutive tokens of one sequence, the first at position ``first``; padding rows up to ``rows``."""
        self.write_prompts([Chunk(tokens, first, slot)], rows)

    def write_prompts(self, chunks: Sequence[Chunk], rows: int) -> list[int]:
        """Consecutive tokens of several sequences; padding rows up to ``rows``. Returns the first row of each."""
        begins, words, end = [], [], 0
        for chunk in chunks:
            begins.append(end)
            size = min(pack_rows_of(len(chunk.tokens)), rows - end) if len(chunks) > 1 else rows
            part = self.prompt_rows(len(chunk.tokens), chunk.first, chunk.slot, size)
            part[: len(chunk.tokens), 0] = chunk.tokens
            words.append(part)
            end += size
        if end < rows:
            words.append(self.prompt_rows(0, 1, self.dump, rows - end))
        self._write(self.rows, np.concatenate(words))
        return begins

    def prompt_rows(self, count: int, first: int, slot: int, rows: int) -> Words:
        """The state of ``write_prompt`` for ``count`` tokens, which are still 0."""
        state = step_rows([0] * rows, first + count - 1, self.dump)
        state[:count, 1] = np.arange(first, first + count)
        state[:count, 2] = slot
        return state

    def pick(self, rows: Sequence[int]) -> None:
        """The rows of a prompt whose logits are computed."""
        self._write(self.picks, step_rows(rows, 0))

    def write_rows(self, batch: Sequence[Row], rows: int, masked: bool = False) -> None:
        """One position each of several sequences; padding rows up to ``rows``. ``masked`` steps read settings even if
        all are plain."""
        plain, padding = all(r.settings.plain for r in batch), rows - len(batch)
        state = step_rows([0] * rows, 0, self.dump)
        for words, row in zip(state, batch, strict=False):
            words[:3] = row.token, row.position, row.slot
        draws = [r.settings.draw(r.settings.plain, r.last_position, sorted(r.stop_ids)) for r in batch]
        self._write(self.rows, state)
        self._write(self.sampler.draws, np.stack(draws + [Settings().draw(True)] * padding))
        self._write(self.sampler.cuts, no_cuts(rows))
        if masked or not plain:
            # A plain row keeps its raw logits, so that it draws the token that it draws in a plain step.
            packed = [(Settings() if r.settings.plain else r.settings).pack() for r in batch]
            packed += [Settings().pack()] * padding
            self._write(self.sampler.settings, np.stack(packed))

    def write_masks(self, masks: Words) -> None:
        """The tokens that each row of a step may take: uint32 [rows, ⌈vocab / 32⌉], see ``Sampler.masks``."""
        words = np.zeros((len(masks), self.sampler.masks.stride), np.uint32)
        words[:, : masks.shape[1]] = masks
        self._write(self.sampler.masks, words)

    def count_tokens(self, slot: int, prompt: Sequence[int], made: Sequence[int]) -> None:
        """Set the counts of a slot's tokens, which penalties read. ``made`` are the tokens made so far."""
        counts = np.bincount(np.asarray(made, np.int64), minlength=self._vocab).astype(np.uint32)
        counts[np.asarray(prompt)] |= PROMPT_BIT
        self._write_row(self.sampler.counts, slot, counts)

    def set_bias(self, slot: int, bias: dict[int, float]) -> None:
        """Set the bias of a slot before a sequence uses it."""
        if bias or slot in self._biased:
            values = np.zeros(self._vocab, np.float32)
            for token, value in bias.items():
                values[token] = value
            self._write_row(self.sampler.bias, slot, values.view(np.uint32))
            (self._biased.add if bias else self._biased.discard)(slot)

    def reading(self, settings: Sequence[Settings], steps: int = 1) -> tuple[Reading, list[Part]]:
        """Staging memory for the results of the first rows, and the windows to copy into it after every step."""
        wanted = tuple(s.logprobs for s in settings)
        windows = [self.sampler.result.head(len(wanted)).part]
        if any(wanted):
            windows.append(self.sampler.likely.head(len(wanted)).part)
        size = sum(p.size for p in windows)
        slot = self._memory.take_slot(MOST_STEPS * size)  # always, so that the slots of any number of steps serve again
        return Reading(slot, size, wanted, steps), windows

    def read(self, reading: Reading) -> list[list[Sampled]]:
        """Wait for results; returns the sampled token of every row, for every step."""
        size = reading.size
        data = self._memory.read_slot(reading.slot, reading.steps * size)
        return [read_sampled(data[i * size : (i + 1) * size], reading.wanted) for i in range(reading.steps)]

    def drop(self, reading: Reading) -> None:
        """Free the staging memory of results that cannot be read any more."""
        self._memory.free(reading.slot.buffer)

    def _write(self, tensor: Tensor, values: Words) -> None:
        part = tensor.part
        self._memory.write(part.buffer, part.offset, np.ascontiguousarray(values))

    def _write_row(self, tensor: Tensor, row: int, values: Words) -> None:
        part = tensor.part
        self._memory.write(part.buffer, part.offset + row * tensor.stride * 4, values)
