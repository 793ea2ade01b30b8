"""The buffers of a recorded model: their names, and the bytes that they begin with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llamagpu.gpu import Tensor
from llamagpu.gpu.ledger import Buffer
from llamagpu.model.forward import Forward


def buffer_names(forward: Forward[Any]) -> dict[Buffer, str]:
    """The name of every buffer: that of its tensor, with a number if a tensor has several, or of the first of several
    tensors that share it."""
    names: dict[Buffer, str] = {}
    for name, tensor in _tensors(forward):
        for kind, parts in (("", tensor.parts), (".scales", tensor.meta)):
            for number, part in enumerate(parts):
                names.setdefault(part.buffer, f"{name}{kind}" + (f".{number}" if len(parts) > 1 else ""))
    return names


def _tensors(forward: Forward[Any]) -> Iterator[tuple[str, Tensor]]:
    yield from _fields("", forward.weights)
    for number, (layer, cache) in enumerate(zip(forward.weights.layers, forward.cache.layers, strict=True)):
        yield from _fields(f"layers.{number}.", layer)
        yield f"layers.{number}.cache", cache.data
    yield "pages", forward.cache.table
    for number, table in enumerate(forward.rotations.values()):
        yield f"rotations.{number}", table
    arena = forward.arena
    yield from arena.activations.items()
    for holder in (arena, arena.state, arena.state.sampler):
        yield from _fields("", holder)


def _fields(prefix: str, holder: object) -> Iterator[tuple[str, Tensor]]:
    """The tensors among the attributes of an object. Vectors share a buffer, which is named for all of them."""
    for name, value in vars(holder).items():
        if isinstance(value, Tensor):
            yield ("vectors" if len(value.shape) == 1 else prefix + name), value
