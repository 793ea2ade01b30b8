"""The forward pass of a decoder over bound tensors: its ids come from a tensor, its results go to tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llamagpu.gpu import CommandList, Copy, Part, Plan, Tensor, copy_rows
from llamagpu.gpu.dtypes import ITEM_SIZE
from llamagpu.kernels.step import NO_END, step_rows
from llamagpu.model.cache import Pages
from llamagpu.model.config import Config
from llamagpu.model.forward import BATCHES, HEAD_ROWS, bucket
from llamagpu.model.model import Model

INPUT = "input_ids"


@dataclass(frozen=True)
class Argument:
    """A name that a tensor can be bound to: an input u32 [n], or an output f32 with a row for every id or one row.

    Attributes:
        each, one: whether an output may have a row for every id, or one row alone.
    """

    dtype: str
    columns: int | None = None
    each: bool = True
    one: bool = True

    def shapes(self, count: int) -> list[tuple[int, int | None]]:
        """The shapes of an output for ``count`` ids."""
        return [(rows, self.columns) for rows in dict.fromkeys((count,) * self.each + (1,) * self.one)]


def encoder_arguments(hidden_size: int) -> dict[str, Argument]:
    """The input, then the outputs of an encoder."""
    return {
        INPUT: Argument("u32"),
        "hidden_states": Argument("f32", hidden_size, one=False),
        "pooled": Argument("f32", hidden_size, each=False),
    }


def decoder_arguments(config: Config, head: bool) -> dict[str, Argument]:
    """The input, then the outputs of a decoder; without ``head`` it computes no logits."""
    logits = {"logits": Argument("f32", config.vocab_size)} if head else {}
    return {INPUT: Argument("u32")} | logits | {"hidden_states": Argument("f32", config.hidden_size)}


@dataclass
class _Script:
    """Commands as they are collected. The words that they copy to the step's state lie in one tensor, made at the end,
    so that a run uploads nothing."""

    steps: list[Plan | Copy | tuple[int, Tensor]] = field(default_factory=list)
    words: list[npt.NDArray[np.uint32]] = field(default_factory=list)
    rows: int = 0

    def write(self, values: npt.NDArray[np.uint32], target: Tensor) -> None:
        """Words for the first rows of a tensor."""
        self.steps.append((self.rows, target.head(len(values))))
        self.words.append(values)
        self.rows += len(values)

    def commands(self, kept: Tensor) -> list[Plan | Copy]:
        """The commands; ``kept`` holds the words."""
        out: list[Plan | Copy] = []
        for step in self.steps:
            if isinstance(step, tuple):
                first, target = step
                out += copy_rows(kept, first, target, 0, target.rows)
            else:
                out.append(step)
        return out


class BoundPrompt:
    """A prompt of bound tensors, in pages of the cache. On the device thread.

    It runs the plans of ``LLM.logits``, in the same chunks and blocks, so its results have the same bits. The tokens
    come from ``input_ids``; state and results are copied on the GPU. Nothing is recorded for a binding: only plans for
    shapes that did not run before are.

    Attributes:
        pages: its slot and pages in the cache.
        words: u32 [rows, 4], the state of all steps, which is uploaded once.
        commands: one run.
    """

    def __init__(self, model: Model, pages: Pages, tensors: Mapping[str, Tensor], segment_work: float):
        self.pages, self._forward, self._tensors = pages, model.forward, tensors
        self._count = tensors[INPUT].columns
        self._script = _Script()
        self._script.write(step_rows([NO_END], 0), self._forward.state.broken)
        for first in range(0, self._count, model.sizes.rows):
            self._chunk(first, min(model.sizes.rows, self._count - first))
        device = self._forward.device
        self.words = device.tensor(np.concatenate(self._script.words), "u32", purpose="activations")
        self.commands = CommandList(device.memory, self._script.commands(self.words), segment_work)

    def _chunk(self, first: int, count: int) -> None:
        """The tokens ``first`` to ``first + count``, and the results of their rows."""
        forward, script, rows = self._forward, self._script, bucket(count)
        script.write(forward.state.prompt_rows(count, first, self.pages.slot, rows), forward.state.rows)
        script.steps += [copy_ids(self._tensors[INPUT], first, forward.state.ids, count)]
        blocks = self._blocks(first, count)
        if blocks:
            self._picks(count, blocks[0])
        script.steps.append(forward.prefill_ids(rows))
        for number, block in enumerate(blocks):
            if number:
                self._picks(count, block)
            script.steps.append(forward.head(_padded(block)))
            if number + 1 == len(blocks):
                self._last_norm(rows)
            self._take("logits", forward.logits, first + block.start, len(block))
        if not blocks:
            self._last_norm(rows)
        self._take("hidden_states", forward.hidden_states, first, count)

    def _blocks(self, first: int, count: int) -> list[range]:
        """Rows of the chunk whose logits are wanted, in blocks of the head."""
        logits, wanted = self._tensors.get("logits"), range(count)
        if logits is None or (logits.rows == 1 and first + count < self._count):
            return []
        if logits.rows == 1:
            wanted = wanted[-1:]
        return [wanted[i : i + HEAD_ROWS] for i in range(0, len(wanted), HEAD_ROWS)]

    def _picks(self, count: int, block: range) -> None:
        picked = [min(row, count - 1) for row in range(block.start, block.start + _padded(block))]
        self._script.write(step_rows(picked, 0), self._forward.state.picks)

    def _last_norm(self, rows: int) -> None:
        if "hidden_states" in self._tensors:
            self._script.steps.append(self._forward.last_norm(rows))

    def _take(self, name: str, source: Tensor, first: int, count: int) -> None:
        """Copy the results of ``count`` positions from ``first`` on, which are the first rows of ``source``, to a bound
        tensor; or the last of them, if the tensor has one row."""
        target = self._tensors.get(name)
        if target is None:
            return
        if target.rows == self._count:
            self._script.steps += copy_rows(source, 0, target, first, first + count)
        elif first + count == self._count:
            self._script.steps += copy_rows(source, count - 1, target, 0, 1)


def _padded(block: range) -> int:
    return bucket(len(block), BATCHES)


def copy_ids(ids: Tensor, first: int, target: Tensor, count: int) -> Copy:
    """A copy of ``count`` consecutive ids, u32 [1, …]."""
    size = count * ITEM_SIZE["u32"]
    source, out = ids.part, target.part
    begin = source.offset + first * ITEM_SIZE["u32"]
    return Copy(Part(source.buffer, begin, size, 0, 1), Part(out.buffer, out.offset, size, 0, 1))
