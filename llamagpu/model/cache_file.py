"""The known pages of a cache in a file: safetensors, whose metadata states all that the bits of keys and values depend
on. Keys and values are data as weights are: a file that somebody made up can give wrong text, but do nothing worse.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from llamagpu.errors import LlamaGPUError, ModelNotFoundError, UnsupportedModelError, UsageError
from llamagpu.gpu import Part, Tensor, adapter_key
from llamagpu.kernels.kv_write import PAGE
from llamagpu.model.cache import Known
from llamagpu.model.fingerprint import fingerprint
from llamagpu.model.model import Model, Prepared
from llamagpu.model.rope_table import inverse_frequencies
from llamagpu.model.sources.files import open_file
from llamagpu.model.sources.safetensors import Entry, read_header, read_metadata

Facts = dict[str, str]
_FORMAT = "llamagpu prompt cache 1"
_FILE_TYPE = {"f32": "F32", "f16": "F16"}
_ITEM = {"F32": 4, "F16": 2, "U32": 4, "I32": 4, "U8": 1}
_CHUNK = 4_000_000  # bytes that are read from the device, or from a file, at a time


def cache_facts(model: Model, prepared: Prepared, fused: bool) -> Facts:
    """What the bits of a model's keys and values depend on, by words for messages."""
    layout, sizes = prepared.layout, model.sizes
    formats = [(str(name), str(m.format)) for name, m in layout.matrices.items()]
    angles = [b"" if r is None else inverse_frequencies(r, sizes.context).tobytes() for r in prepared.config.ropes]
    return {
        "format": _FORMAT,
        "model": fingerprint(prepared),
        "dtype of the weights": hashlib.sha256(json.dumps(formats).encode()).hexdigest(),
        "dtype of the cache": sizes.kv_dtype,
        "rotary embedding": hashlib.sha256(b"".join(angles)).hexdigest(),
        "form of the forward pass": "fused" if fused else "unfused",
        "adapter, driver or version of llamagpu": adapter_key(model.device.adapter),
        "tuning": json.dumps(asdict(model.forward.tuning), sort_keys=True),
    }


def _shapes(model: Model, pages: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor of a file, in its order."""
    layers = {
        f"layers.{i}": (_FILE_TYPE[cache.data.dtype], (pages, cache.data.columns))
        for i, cache in enumerate(model.cache.layers)
    }
    return layers | {"tokens": ("U32", (pages, PAGE)), "before": ("I32", (pages,)), "exact": ("U8", (pages,))}


# --- writing -----------------------------------------------------------------------------------


def save_pages(model: Model, path: Path, facts: Facts) -> int:
    """Write all known pages, and return their tokens. Until the file is complete, its name keeps what it had. On the
    device thread; host memory holds one layer at a time.

    Raises:
        LlamaGPUError: writing failed, for example because the disk is full.
    """
    known = model.cache.known()
    shapes = _shapes(model, len(known))

    def data() -> Iterator[npt.NDArray[Any]]:
        pages = np.array([page for page, _ in known], np.int64)
        for cache in model.cache.layers:
            yield _read_layer(model, cache.data, pages)
        yield np.array([one.tokens for _, one in known], np.uint32).reshape(-1, PAGE)
        yield np.array([one.before for _, one in known], np.int32)
        yield np.array([one.exact for _, one in known], np.uint8)

    with _replacing(path) as file:
        digest = hashlib.sha256()
        file.write(_header(shapes, facts, digest.hexdigest()))  # its length is known, its digest is not yet
        for array in data():
            digest.update(array.data)
            file.write(array.data)
        file.seek(0)
        file.write(_header(shapes, facts, digest.hexdigest()))
    return len(known) * PAGE


def _header(shapes: dict[str, tuple[str, tuple[int, ...]]], facts: Facts, digest: str) -> bytes:
    header: dict[str, Any] = {"__metadata__": facts | {"sha256": digest}}
    at = 0
    for name, (dtype, shape) in shapes.items():
        size = int(np.prod(shape)) * _ITEM[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read_layer(model: Model, data: Tensor, pages: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """The bytes of some pages of a layer, [pages, bytes of a page]."""
    part, size = data.part, data.row_bytes
    out = np.empty((len(pages), size), np.uint8)
    step = max(1, _CHUNK // size)
    for first in range(0, data.rows, step):
        wanted = np.flatnonzero((pages >= first) & (pages < first + step))
        if len(wanted):
            count = min(step, data.rows - first)
            window = Part(part.buffer, part.offset + first * size, count * size, first, count)
            rows = np.frombuffer(model.device.memory.read(window), np.uint8).reshape(count, size)
            out[wanted] = rows[pages[wanted] - first]
    return out


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which gets the name at the end of the block, or is removed after an error."""
    draft = None
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}-", dir=path.parent, delete=False) as file:
            draft = Path(file.name)
            yield file  # type: ignore[misc]
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        draft = None
    except OSError as e:
        what = f"The prompt cache {path} could not be written."
        raise LlamaGPUError(what, e.strerror or str(e), "Free some space, or choose another place.") from e
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)


# --- reading -----------------------------------------------------------------------------------


def load_pages(model: Model, path: Path, facts: Facts) -> int:
    """Make the pages of a file known, as many as free pages have room for, and return their tokens. Pages that the
    cache knows stay. On the device thread.

    Raises:
        UsageError: the file is missing, damaged, or of another model, dtype, tuning, adapter or version. Nothing of it
            was taken then.
    """
    try:
        entries, metadata = read_header(path), read_metadata(path)
        file = open_file(path)
    except (UnsupportedModelError, ModelNotFoundError) as e:
        raise _refused(path, e.what) from None
    with file:
        try:
            _check_facts(metadata, facts)
            pages = _check_shapes(model, entries)
            _check_digest(file, entries, metadata)
            known = _read_known(file, entries, min(pages, model.cache.total), model.config.vocab_size)
            return PAGE * model.cache.adopt(known, lambda places: _fill(model, file, entries, places))
        except (ValueError, OSError) as e:
            raise _refused(path, str(e)) from None


def _refused(path: Path, why: str) -> UsageError:
    return UsageError(f"The prompt cache {path} cannot be used.", why, "Remove it, or choose another file.")


def _check_facts(metadata: Facts, facts: Facts) -> None:
    """Raises ValueError if keys and values would have other bits here."""
    if metadata.get("format") != _FORMAT:
        raise ValueError("It is no prompt cache of llamagpu, or one of another version.")
    for name, value in facts.items():
        if metadata.get(name) != value:
            raise ValueError(f"It was made with another {name}.")


def _check_shapes(model: Model, entries: dict[str, Entry]) -> int:
    """The pages of a file. Raises ValueError if a tensor does not have the dtype and the shape of this model's."""
    pages = entries["exact"].shape[0] if "exact" in entries and len(entries["exact"].shape) == 1 else 0
    if {name: (e.dtype, e.shape) for name, e in entries.items()} != _shapes(model, pages):
        raise ValueError("It is damaged: its tensors are not those of this model's cache.")
    return pages


def _check_digest(file: BinaryIO, entries: dict[str, Entry], metadata: Facts) -> None:
    """Raises ValueError if bytes of the tensors have changed."""
    digest = hashlib.sha256()
    file.seek(min(e.begin for e in entries.values()))
    while data := file.read(_CHUNK):
        digest.update(data)
    if digest.hexdigest() != metadata.get("sha256"):
        raise ValueError("It is damaged: its bytes have changed.")


def _read_known(file: BinaryIO, entries: dict[str, Entry], count: int, vocab: int) -> list[Known]:
    """The first pages of a file, without keys and values. Raises ValueError for what no cache gives."""

    def read(name: str, dtype: str, columns: int = 1) -> list[Any]:
        file.seek(entries[name].begin)
        values = np.frombuffer(file.read(count * columns * np.dtype(dtype).itemsize), dtype)
        found: list[Any] = (values.reshape(count, columns) if columns > 1 else values).tolist()
        return found

    known: list[Known] = []
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for tokens, before, exact in zip(
        read("tokens", "<u4", PAGE), read("before", "<i4"), read("exact", "u1"), strict=True
    ):
        key = before, tuple(tokens)
        if max(tokens) >= vocab or not -1 <= before < len(known) or exact > 1 or key in seen:
            raise ValueError("It is damaged: its list of pages contradicts itself.")
        if exact and before >= 0 and not known[before].exact:
            raise ValueError("It is damaged: its list of pages contradicts itself.")
        seen.add(key)
        known.append(Known(key[1], before, bool(exact)))
    return known


def _fill(model: Model, file: BinaryIO, entries: dict[str, Entry], places: list[tuple[int, int]]) -> None:
    """Write the keys and values of pages: pairs of (place in the file, page)."""
    for i, cache in enumerate(model.cache.layers):
        part, size, begin = cache.data.part, cache.data.row_bytes, entries[f"layers.{i}"].begin
        for place, page in places:
            file.seek(begin + place * size)
            data = file.read(size)
            if len(data) < size:
                raise ValueError("It is damaged: it was cut while it was read.")
            model.device.memory.write(part.buffer, part.offset + page * size, data)
