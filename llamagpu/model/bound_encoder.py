"""The forward pass of an encoder over bound tensors: its ids come from a tensor, its results go to tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

from llamagpu.gpu import CommandList, Copy, Plan, Tensor, copy_rows
from llamagpu.kernels.step import NO_END, step_rows
from llamagpu.model.bound import INPUT, copy_ids
from llamagpu.model.encoder import Encoder
from llamagpu.model.packs import Encoded


class BoundText:
    """One text of bound tensors, of token type 0. On the device thread.

    It runs the plan of ``Encoder.launch`` with the ids of a tensor, so its results have the same bits. The words of its
    rows are uploaded once, and copied on the GPU.

    Args:
        modes: of the pooled vector, one; or none.

    Attributes:
        commands: one run.
    """

    def __init__(self, encoder: Encoder, tensors: Mapping[str, Tensor], modes: tuple[str, ...]):
        device, count, bound = encoder.device, tensors[INPUT].columns, encoder.bound_ids()
        words = encoder.words([Encoded((0,) * count, (0,) * count)])
        targets = {name: encoder.buffer(name) for name in words} | {"broken": bound.broken}
        words["broken"] = step_rows([NO_END], 0)
        rows = len(words["words"])
        self._kept = {name: device.tensor(values, "u32", purpose="activations") for name, values in words.items()}
        steps: list[Plan | Copy] = [copy_ids(tensors[INPUT], 0, bound.ids, count)]
        for name, kept in self._kept.items():
            steps += copy_rows(kept, 0, targets[name], 0, kept.rows)
        steps.append(encoder.plan(rows, modes, bound))
        if "hidden_states" in tensors:
            steps += copy_rows(encoder.buffer("x"), 0, tensors["hidden_states"], 0, count)
        for mode in modes:
            steps += copy_rows(encoder.pooling.buffer(mode), 0, tensors["pooled"], 0, 1)
        self.commands = CommandList(device.memory, steps, math.inf)

    def free(self) -> None:
        """Free the words."""
        for tensor in self._kept.values():
            tensor.free()
