"""Headers of GGUF files, parsed within bounds: metadata, and the place and type of each tensor.

``gguf.GGUFReader`` trusts the counts and lengths of a file, so a broken one can make it hang or fill the memory. Here
every length is checked against the file before anything is read. The format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from llamagpu.errors import UnsupportedModelError
from llamagpu.model.sources.files import broken, open_file

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MOST_HEADER = 256_000_000  # bytes; the largest vocabularies take 20 million
_MOST_STRINGS = 2_000_000  # in all arrays; the largest vocabularies and their merges are 800,000
_MOST_ENTRIES = 100_000  # tensors, or metadata keys
_MOST_AXES = 4
_MOST_KEY = 65_535


@dataclass(frozen=True)
class Info:
    """A tensor in a file: its type by GGUF's name (``Q4_K``), its shape (rows first) and its byte range."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The metadata and tensors of a file. Values are numbers, strings, lists of strings, and numpy arrays."""

    path: Path
    fields: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Info] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """The header of one GGUF file of version 2 or 3, little-endian.

    Raises:
        UnsupportedModelError: the file is broken, or of another version or byte order; the reason is named.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(8).startswith(b"version "):
            raise broken(path, "it is a Git LFS pointer, not the weights (run: git lfs pull)")
        if size < 24:
            raise broken(path, f"it has only {size} bytes")
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Parser(path, data, size).header()
        except OSError as e:
            raise UnsupportedModelError(f"{path} cannot be read.", str(e)) from None


class _Parser:
    """A position in a header. Every read is checked against ``end``."""

    def __init__(self, path: Path, data: mmap.mmap, size: int):
        self.path, self.data, self.size = path, data, size
        self.at, self.end, self.strings = 0, min(size, _MOST_HEADER), 0

    def header(self) -> Header:
        version = self._start()
        tensors, keys = self._number("<Q"), self._number("<Q")
        if max(tensors, keys) > _MOST_ENTRIES:
            raise broken(self.path, f"version {version} with {tensors:,} tensors and {keys:,} keys is not plausible")
        fields: dict[str, Any] = {}
        for _ in range(keys):
            key = self._string("a key", _MOST_KEY)
            if key in fields:
                raise broken(self.path, f"the key {key!r:.60} occurs twice")
            fields[key] = self._value(key)
        infos = [self._info() for _ in range(tensors)]
        return Header(self.path, fields, self._placed(infos, self._alignment(fields)))

    def _start(self) -> int:
        if self._take(4, "its magic number") != b"GGUF":
            raise broken(self.path, "it does not begin with GGUF")
        version = int(self._number("<I"))
        if version not in (2, 3):
            big_endian = version in (2 << 24, 3 << 24)
            raise UnsupportedModelError(
                f"{self.path.name} is " + ("a big-endian GGUF file." if big_endian else f"GGUF of version {version}."),
                "Supported: versions 2 and 3, little-endian.",
                "Download a current version of the file, or convert the model again.",
            )
        return version

    def _take(self, count: int, what: str) -> bytes:
        begin, self.at = self.at, self.at + count
        if self.at > self.end:
            reason = "it may be truncated" if self.end == self.size else "a header is not that long"
            raise broken(self.path, f"{what} ends at byte {self.at:,} of {self.end:,}; {reason}")
        return self.data[begin : self.at]

    def _number(self, code: str) -> Any:
        return struct.unpack(code, self._take(struct.calcsize(code), "its header"))[0]

    def _string(self, what: str, most: int = _MOST_HEADER) -> str:
        length = int.from_bytes(self._take(8, what), "little")
        if length > most:
            raise broken(self.path, f"{what} claims {length:,} bytes")
        try:
            return str(self._take(length, what), "utf-8")
        except UnicodeDecodeError:
            raise broken(self.path, f"{what} is not UTF-8") from None

    def _value(self, key: str) -> Any:
        kind = int(self._number("<I"))
        if kind == _STRING:
            return self._string(f"the value of {key}")
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise broken(self.path, f"{key} has the unknown value type {kind}")
        return self._number(_SCALARS[kind])

    def _array(self, key: str) -> Any:
        kind, count = int(self._number("<I")), int(self._number("<Q"))
        what = f"the array {key}"
        if kind == _STRING:
            self.strings += count
            if self.strings > _MOST_STRINGS:
                raise broken(self.path, f"{what} claims {count:,} strings")
            return self._strings(what, count)
        if kind not in _SCALARS:
            raise broken(self.path, f"{what} has elements of the type {kind}, not numbers or strings")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self._take(count * dtype.itemsize, what), dtype)

    def _strings(self, what: str, count: int) -> list[str]:
        """``count`` strings; a loop of its own, because vocabularies have hundreds of thousands."""
        data, at, end, out = self.data, self.at, self.end, []
        length = struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                begin = at + 8
                if begin > end:
                    break
                at = begin + length(data, at)[0]
                if at > end:
                    break
                out.append(str(data[begin:at], "utf-8"))
        except UnicodeDecodeError:
            raise broken(self.path, f"string {len(out)} of {what} is not UTF-8") from None
        self.at = at
        if len(out) < count:
            raise broken(self.path, f"string {len(out)} of {what} ends beyond the header")
        return out

    def _info(self) -> tuple[str, str, tuple[int, ...], int, int]:
        """Name, type, shape (rows first), offset and bytes of a tensor."""
        name = self._string("the name of a tensor", _MOST_KEY)
        axes = int(self._number("<I"))
        if not 1 <= axes <= _MOST_AXES:
            raise broken(self.path, f"{name:.60} has {axes} axes")
        shape = tuple(int(self._number("<Q")) for _ in range(axes))
        number, offset = int(self._number("<I")), int(self._number("<Q"))
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise broken(self.path, f"{name:.60} has the unknown tensor type {number}") from None
        block, nbytes = GGML_QUANT_SIZES[kind]
        if math.prod(shape) == 0 or shape[0] % block:
            raise broken(self.path, f"{name:.60} has the shape {list(shape)}, which {kind.name} blocks cannot hold")
        return name, kind.name, shape[::-1], offset, math.prod(shape) // block * nbytes

    def _alignment(self, fields: dict[str, Any]) -> int:
        value = fields.get("general.alignment", 32)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1 or value & (value - 1):
            raise broken(self.path, f"general.alignment is {value!r:.40}; it must be a power of two")
        return value

    def _placed(self, infos: list[tuple[str, str, tuple[int, ...], int, int]], alignment: int) -> dict[str, Info]:
        """The tensors by name, their ranges checked against the file and one another."""
        base = -(-self.at // alignment) * alignment
        out: dict[str, Info] = {}
        for name, dtype, shape, offset, nbytes in infos:
            begin = base + offset
            if name in out:
                raise broken(self.path, f"the tensor {name:.60} occurs twice")
            if offset % alignment:
                raise broken(self.path, f"{name:.60} lies at byte {offset:,}, which is not a multiple of {alignment}")
            if begin + nbytes > self.size:
                raise broken(self.path, f"{name:.60} ends at byte {begin + nbytes:,} of {self.size:,}; it is truncated")
            out[name] = Info(self.path, dtype, shape, begin, begin + nbytes)
        ordered = sorted(out.items(), key=lambda item: item[1].begin)
        for (a, first), (b, second) in itertools.pairwise(ordered):
            if second.begin < first.end:
                raise broken(self.path, f"the tensors {a:.60} and {b:.60} overlap")
        return out
