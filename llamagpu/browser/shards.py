"""The bytes that buffers begin with, written as files of bounded size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamagpu.gpu import Part, SymbolicDevice
from llamagpu.gpu.ledger import Buffer

SHARD_BYTES = 64_000_000
_SLICE = 16_000_000  # bytes in host memory at a time


@dataclass(frozen=True)
class Shards:
    """Files whose bytes, one after another, are the contents of buffers.

    Attributes:
        begins: the place of each buffer's content; buffers without content begin as zeros.
        files: name, bytes and SHA-256 of each file, in order.
    """

    begins: dict[Buffer, int]
    files: list[dict[str, Any]]


def write_shards(device: SymbolicDevice, buffers: Iterable[Buffer], folder: Path, prefix: str) -> Shards:
    """Write the contents of buffers to files ``prefix`` + number in a folder, of at most ``SHARD_BYTES`` each."""
    begins, end = {}, 0
    for buffer in (b for b in buffers if b in device.memory.written):
        begins[buffer], end = end, end + buffer.size
    files: list[dict[str, Any]] = []
    for number, pieces in enumerate(_cut(_contents(device, begins), SHARD_BYTES)):
        name, digest, size = f"{prefix}{number:04}.bin", hashlib.sha256(), 0
        with (folder / name).open("wb") as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                size += len(piece)
        files.append({"file": name, "bytes": size, "sha256": digest.hexdigest()})
    return Shards(begins, files)


def _contents(device: SymbolicDevice, buffers: Iterable[Buffer]) -> Iterator[bytes]:
    for buffer in buffers:
        for begin in range(0, buffer.size, _SLICE):
            yield device.memory.read(Part(buffer, begin, min(_SLICE, buffer.size - begin), 0, 1))


def _cut(pieces: Iterator[bytes], most: int) -> Iterator[Iterator[bytes]]:
    """Group pieces into consecutive parts of exactly ``most`` bytes, but for the last one. Each part must be used up
    before the next."""
    rest = next(pieces, b"")

    def part() -> Iterator[bytes]:
        nonlocal rest
        left = most
        while rest and left:
            taken, rest = rest[:left], rest[left:]
            left -= len(taken)
            yield taken
            rest = rest or next(pieces, b"")

    while rest:
        yield part()
