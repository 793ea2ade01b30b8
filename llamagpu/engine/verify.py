"""Verification of a loaded model: its forward pass is replayed call by call, and every result is compared with float64.

Each call's reference takes the weights from the model's files and everything else from what the GPU held before the
call. So errors do not add up, and the first call that departs is the one that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamagpu.errors import WrongNumbersError
from llamagpu.gpu import Device, Plan
from llamagpu.gpu.ledger import Buffer
from llamagpu.kernels.kv_write import PAGE
from llamagpu.model import Model
from llamagpu.model.cache import PagedCache
from llamagpu.model.expected import Intermediate, References
from llamagpu.model.forward import ROW_BUCKETS, Forward, make_arena
from llamagpu.model.layout import Layout
from llamagpu.model.replay import replay
from llamagpu.model.step import Row

if TYPE_CHECKING:
    from llamagpu.engine.language_model import LanguageModel

MOST_TOKENS = 16  # of the prompt; more than eight, so that both families of products run
_TEXT = "Once upon a time there was a little dog who liked to run in the park with his friends."


@dataclass(frozen=True)
class Seen:
    """An intermediate of a form of the forward pass: ``prompt`` or ``step``, ``fused`` or ``unfused``."""

    form: str
    intermediate: Intermediate


def verify(llm: LanguageModel, ids: Sequence[int] | None = None) -> Iterator[Seen]:
    """Replay the first tokens of a prompt, then a decode step, in the fused and in the unfused form.

    The replays have their own cache and activations, for a few tokens; generation is not disturbed.

    Args:
        ids: a prompt of one token or more; None is a text of the library's own. Up to 16 tokens are taken, a power of
            two.

    Raises:
        UsageError: a token is not in the vocabulary.
        WrongNumbersError: the first result that departs from its reference, by layer and kernel.
        OutOfMemoryError: the replay does not fit beside the model.
    """
    device, model, layout = llm.device, llm.loaded, llm.layout
    ids = list(llm._prompts.checked(ids)) if ids else llm.tokenize(_TEXT)
    most = min(len(ids), MOST_TOKENS, max(1, model.context - 1))  # a place is left for the step
    count = max(n for n in ROW_BUCKETS if n <= most and n & (n - 1) == 0)
    for fused in (True, False):
        yield from _form(device, model, layout, ids[:count], fused)


def verified(llm: LanguageModel) -> None:
    """Verify a model that was just loaded, and close it if it departs."""
    try:
        for _ in verify(llm):
            pass
    except BaseException:
        llm.close()
        raise


def _form(device: Device, model: Model, layout: Layout, ids: list[int], fused: bool) -> Iterator[Seen]:
    """The prompt, its logits and a step in one form, on buffers of their own."""
    buffers: list[Buffer] = []
    forward = None
    try:
        with device.ledger.tracking() as buffers:
            cache, forward = _make(device, model, len(ids), fused)
        references, name = References(model, layout, cache.layers), "fused" if fused else "unfused"
        pages = cache.take(len(ids) + 1)
        assert pages is not None
        yield from _prompt(device, forward, references, ids, pages.slot, name)
        if len(ids) < model.context:
            forward.state.write_rows([Row(ids[-1], len(ids), pages.slot)], 1)
            yield from _replayed(device, forward.decode(1, len(ids) + 1, True), references, f"{name} step")
    finally:
        if forward is not None:
            forward.free()
        for buffer in buffers:
            device.free(buffer)


def _make(device: Device, model: Model, count: int, fused: bool) -> tuple[PagedCache, Forward[Plan]]:
    config, context = model.config, min(model.context, 4 * MOST_TOKENS)
    cache = PagedCache(device, config, context, context + PAGE, model.sizes.kv_dtype, count)
    arena = make_arena(device, config, count, context, fused)
    cache.take(1)  # so that slots and pages are not numbered as positions are
    loaded = model.forward
    return cache, Forward(device, config, model.weights, cache, loaded.rotations, arena, loaded.tuning, fused)


def _prompt(
    device: Device, forward: Forward[Plan], references: References, ids: list[int], slot: int, name: str
) -> Iterator[Seen]:
    forward.state.write_prompt(ids, 0, slot, len(ids))
    forward.state.pick([len(ids) - 1])
    for plan in (forward.prefill(len(ids)), forward.head(1)):
        yield from _replayed(device, plan, references, f"{name} prompt of {len(ids)} tokens")


def _replayed(device: Device, plan: Plan, references: References, form: str) -> Iterator[Seen]:
    for step in replay(device, plan, references.fixed):
        for found in references.of(step):
            if not found.ok:
                raise _departs(device, form, found)
            yield Seen(form, found)


def _departs(device: Device, form: str, found: Intermediate) -> WrongNumbersError:
    where = "" if found.layer is None else f"layer {found.layer}, "
    return WrongNumbersError(
        f"Wrong numbers in the {form}: {where}{found.name}, by the kernel {found.kernel}.",
        f"Its error is {found.error:.2e}, the tolerance {found.tolerance:.0e}. The shader is {found.program}, on "
        f"{device.adapter} with the driver {device.adapter.driver or 'unknown'}.",
        "Update the driver, or choose another adapter. llamagpu doctor writes a report for an issue.",
    )
