"""Bound sessions: a model whose input and outputs are tensors on the device."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from llamagpu.errors import ContextFullError, DeviceLostError, KernelError, Unique, UsageError, shown
from llamagpu.gpu import Device, Part, Tensor
from llamagpu.model.bound import INPUT, Argument

Bindings = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


class Binder(Protocol):
    """What runs bound tensors: an engine. From any thread."""

    def bind(self, tensors: Mapping[str, Tensor]) -> Any:
        """Prepare runs over checked tensors."""

    def run(self, made: Any) -> None:
        """Submit a run of what ``bind`` made, and wait for nothing."""

    def unbind(self, made: Any) -> None:
        """Give back what ``bind`` took."""


class Bound(Unique):
    """A model bound to tensors on its device; ``LLM.bind`` or ``Embedder.bind`` makes one. Use it as a context manager,
    from any thread.

    ``run`` reads ``input_ids`` and writes the outputs, any number of times. Of a decoder it holds a slot of the cache,
    with pages for the ids, until ``close`` or garbage collection gives them back.

    Attributes:
        tensors: the bound tensors by name.
    """

    def __init__(self, binder: Binder, tensors: dict[str, Tensor]):
        self.tensors, self._binder = tensors, binder
        self._made = binder.bind(tensors)
        self._free = weakref.finalize(self, binder.unbind, self._made)
        self._free.atexit = False  # the device frees everything then

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in self.tensors.items())
        return f"<Bound {shapes}{'' if self._free.alive else ' closed'}>"

    def run(self) -> None:
        """Queue the forward pass over the ids that ``input_ids`` holds at this point of the queue. It waits for nothing
        and reads nothing; later calls on the tensors see its results.

        The results are those of ``LLM.logits`` or ``Embedder.encode``, bit for bit. From the first id on that is not in
        the vocabulary, those of a decoder are NaN; those of an encoder are all NaN then.

        Raises:
            DeviceLostError: the bound session, its model or the device is closed.
            KernelError: a bound tensor was freed.
        """
        if not self._free.alive:
            raise DeviceLostError("This bound session is closed.", "", "Bind the tensors again.")
        self._binder.run(self._made)

    def close(self) -> None:
        """Give the slot and the pages back, after the runs that are queued. Closing twice is harmless."""
        self._free()


def named_tensors(pairs: Bindings, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both as one dictionary.

    Raises:
        UsageError: a name comes twice, or ``pairs`` has no pairs.
    """
    out: dict[str, Tensor] = {}
    refusal = UsageError(f"{shown(pairs)} are no bindings.", "They are a mapping or pairs of (name, tensor).")
    if isinstance(pairs, Tensor):
        raise refusal
    try:
        items = [(name, tensor) for name, tensor in (pairs.items() if isinstance(pairs, Mapping) else pairs)]
    except (TypeError, ValueError):
        raise refusal from None
    if not all(isinstance(name, str) for name, _ in items):
        raise refusal
    for name, tensor in (*items, *named.items()):
        if name in out:
            raise UsageError(f"{shown(name)} is bound twice.", f"First to {out[name]!r}, then to {shown(tensor)}.")
        out[name] = tensor
    return out


def check_bindings(
    tensors: Mapping[str, Tensor], arguments: Mapping[str, Argument], device: Device, context: int
) -> None:
    """Check tensors against the names that a model binds.

    Raises:
        UsageError: a name is unknown or missing, a value is no tensor, a dtype or a shape is wrong, or two tensors
            overlap.
        ContextFullError: there are more ids than the context has tokens.
        KernelError: a tensor is on another device, or freed.
    """
    known = ", ".join(arguments)
    for name in tensors:
        if name not in arguments:
            raise UsageError(f"{shown(name)} cannot be bound.", f"The names are {known}.")
    if INPUT not in tensors or len(tensors) < 2:
        missing = INPUT if INPUT not in tensors else "every output"
        raise UsageError(f"{missing} is missing.", f"Bind {INPUT} and one output or more of {known}.")
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, arguments[name], device)
    ids = tensors[INPUT]
    if ids.shape not in ((ids.columns,), (1, ids.columns)):
        raise UsageError(f"{INPUT} is {ids!r}.", "Its shape must be [n] or [1, n].")
    if ids.columns > context:
        raise ContextFullError(f"{INPUT} has {ids.columns} tokens; the context has {context}.")
    for name, tensor in tensors.items():
        if name != INPUT:
            _check_shape(name, tensor, ids.columns, arguments[name])
    _check_apart(tensors)


def _check_tensor(name: str, tensor: Tensor, argument: Argument, device: Device) -> None:
    if not isinstance(tensor, Tensor):
        hint = "Make one with device.tensor or device.empty of the model's device."
        raise UsageError(f"{name} is a {type(tensor).__name__}, not a tensor.", "", hint)
    if tensor.device is not device:
        raise KernelError(
            f"{name} is on another device.",
            f"It is on {tensor.device.memory.adapter}, the model on {device.adapter}.",
            "Make it on llm.device.",
        )
    if tensor.dtype != argument.dtype or tensor.woven:
        raise UsageError(f"{name} is {tensor!r}.", f"It must be a plain tensor of {argument.dtype}.")
    if any(part.buffer.freed for part in tensor.parts):
        raise KernelError(f"{name} was freed.", "", "Bind a live tensor.")


def _check_shape(name: str, tensor: Tensor, count: int, argument: Argument) -> None:
    allowed = argument.shapes(count)
    shape = tensor.shape[1:] if len(tensor.shape) == 3 and tensor.shape[0] == 1 else tensor.shape
    if shape not in allowed:
        raise UsageError(
            f"{name} is {tensor!r}.",
            f"With {count} ids its shape must be {' or '.join(str(list(s)) for s in allowed)}.",
        )


def _check_apart(tensors: Mapping[str, Tensor]) -> None:
    """Raises UsageError if two names share memory: one result would overwrite the other, or the ids."""
    seen: list[tuple[str, Part]] = []
    for name, tensor in tensors.items():
        for part in tensor.parts:
            for other, taken in seen:
                apart = part.offset + part.size <= taken.offset or taken.offset + taken.size <= part.offset
                if other != name and part.buffer is taken.buffer and not apart:
                    raise UsageError(f"{name} and {other} share memory.", "", "Bind a tensor of its own to every name.")
        seen += [(name, part) for part in tensor.parts]
