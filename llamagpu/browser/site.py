"""``export``: a model as a static site that runs it in a browser, by WebGPU."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamagpu import page
from llamagpu.browser.libraries import write_libraries
from llamagpu.browser.manifest import manifest
from llamagpu.browser.recorded import plan_browser_sizes, record_model
from llamagpu.browser.shards import write_shards
from llamagpu.browser.text import text_files
from llamagpu.errors import UnsupportedModelError, UsageError
from llamagpu.gpu import SymbolicDevice
from llamagpu.model import Prepared, check_dtypes, find_model, prepare
from llamagpu.model.encoder_config import is_encoder
from llamagpu.model.find import open_source
from llamagpu.model.new_folder import check_new, new_folder
from llamagpu.model.sizes import Sizes
from llamagpu.model.weights import Progress

_MODULES = Path(__file__).parent / "site"


@dataclass(frozen=True)
class Site:
    """A written site.

    Attributes:
        nbytes: bytes of all files; ``weight_bytes`` are those of the weights and tables.
        files: number of files.
        context: the most tokens of a prompt and its text together.
    """

    path: Path
    nbytes: int
    weight_bytes: int
    files: int
    context: int


def export(
    model: str | Path | None,
    out: str | Path,
    *,
    dtype: str = "auto",
    kv_dtype: str = "auto",
    context: int | None = None,
    title: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Site:
    """Write a model as a static site: the page, its JavaScript module, the recorded plans, shaders and weights. No GPU
    is needed for it.

    Args:
        model: a directory, a GGUF file, a hub id, or None for the bundled model.
        out: the site's folder, which must not exist yet.
        dtype, kv_dtype: as for ``LLM``.
        context: the most tokens of a sequence; None is the model's maximum, 4096, or the most that one binding holds.
        title: the page's; None is the model's name.
        progress: called with (bytes of weights read, bytes in total).

    Raises:
        UsageError: ``out`` exists, or an argument is out of its range.
        ModelNotFoundError: the model, or a JavaScript library that was never fetched before, cannot be had.
        UnsupportedModelError: the model is not a decoder, or its tokenizer does not work in a browser.
        OutOfMemoryError: the context does not fit the buffers that every browser offers.
        LlamaGPUError: a file could not be written.
    """
    out = Path(out)
    check_new(out, "site")
    if title is not None and not (isinstance(title, str) and title.strip()):
        raise UsageError("The title is empty.", "It is the heading of the page.", "Give a text, or leave it out.")
    dtype, kv_dtype = check_dtypes(dtype, kv_dtype)
    prepared = _prepared(model, revision, dtype)
    sizes = plan_browser_sizes(prepared, context, kv_dtype)
    with new_folder(out) as folder:
        weights = _write_site(folder, prepared, sizes, title or prepared.name, progress)
        written = [p.stat().st_size for p in folder.rglob("*") if p.is_file()]
    return Site(out, sum(written), weights, len(written), sizes.context)


def _prepared(model: str | Path | None, revision: str | None, dtype: str) -> Prepared:
    source = open_source(find_model(model, revision))
    if is_encoder(source.config()):
        raise UnsupportedModelError(f"{source.name} is an encoder.", "Only models that generate text can be exported.")
    return prepare(source, dtype)


def _write_site(folder: Path, prepared: Prepared, sizes: Sizes, title: str, progress: Progress | None) -> int:
    """Write everything; returns the bytes of the shards."""
    text = text_files(prepared.source, prepared.config.vocab_size)
    _copy_static(folder)
    _write_all(folder, {name: content.encode() for name, content in text.items()})
    with closing(SymbolicDevice()) as device:
        recorded = record_model(device, prepared, sizes, progress)
        (folder / "weights").mkdir()
        shards = write_shards(device, recorded.buffers, folder, "weights/")
    _write_all(folder, {f"shaders/{name}": code.encode() for name, code in recorded.shaders.items()})
    _write_all(folder, {f"plans/{p.name}.json": _json(plan) for p, plan in recorded.profiles.items()})
    plan = manifest(prepared, recorded, shards, title)
    plan["files"] = _hashes(folder, (*text, *_listed(folder, "shaders"), *_listed(folder, "plans")))
    size = sum(int(s["bytes"]) for s in shards.files)
    configuration = page.configuration(title, download_bytes=size)
    _write_all(folder, {"plan.json": _json(plan, indent=1), "page.json": configuration.encode()})
    return size


def _json(value: Any, indent: int | None = None) -> bytes:
    separators = (",", ":") if indent is None else None
    return json.dumps(value, indent=indent, separators=separators, ensure_ascii=False).encode()


def _listed(folder: Path, name: str) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in (folder / name).iterdir())


def _hashes(folder: Path, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of files."""
    contents = {name: (folder / name).read_bytes() for name in names}
    return {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in contents.items()}


def _write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _copy_static(folder: Path) -> None:
    """The page, the modules, and the libraries that they import."""
    _write_all(folder, {name: path.read_bytes() for name, path in page.files().items()})
    shutil.copytree(_MODULES, folder, dirs_exist_ok=True)
    write_libraries(folder / "runtime" / "libraries")
