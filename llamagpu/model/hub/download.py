"""Models from the hub: found in its cache, or the files that are needed downloaded to it.

An interrupted file continues where it stopped, also in a later process. Version 2 of huggingface_hub deletes what there
is of it, so this uses what its own downloads are made of: the listing of a repo, ``http_get`` for a file, and the
layout of the cache. Sizes and hashes are checked against the listing.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Protocol

from llamagpu.errors import LlamaGPUError, ModelNotFoundError, UnsupportedModelError, UsageError
from llamagpu.model.config import parse_config
from llamagpu.model.encoder_config import is_encoder, parse_encoder
from llamagpu.model.hub.cache import CONFIG, ENCODERS, GENERATION, OPTIONAL, Repo, gguf_parts, offline
from llamagpu.model.hub.errors import disk_full, not_cached, our_errors, status_of
from llamagpu.model.hub.headers import listed_headers
from llamagpu.model.hub.listing import Announced, Listing, ask_hub, check_revision, total_size
from llamagpu.model.hub.logs import asking_hub, quiet
from llamagpu.model.sources import Source
from llamagpu.model.sources.files import load_config, load_json
from llamagpu.model.sources.safetensors import INDEX, read_index
from llamagpu.version import __version__

log = logging.getLogger("llamagpu")
# Named chat templates, and the modules of sentence-transformers.
_FOLDERS = re.compile(r"additional_chat_templates/[^/]+\.jinja|\d+_\w+/(config\.json|model\.safetensors)")


class Fit(Protocol):
    """Whether a model that is not here yet would fit the memory."""

    def is_certain(self, stored: int) -> bool:
        """Whether weights of this many bytes fit without a look at their headers."""

    def check(self, source: Source) -> None:
        """Raise OutOfMemoryError if the model does not fit. The tensors of ``source`` cannot be read."""

    def check_size(self, model: str, stored: int) -> None:
        """Raise OutOfMemoryError if a GGUF file of this many bytes cannot fit."""


def hub_model(model: str, revision: str | None = None, refresh: bool = False, fit: Fit | None = None) -> Path:
    """The directory of a hub model in the cache. The hub is asked if files are missing, or with ``refresh``. Weights
    that do not ``fit`` are not downloaded.

    Raises:
        OutOfMemoryError: see ``Fit``.
        ModelNotFoundError: the hub does not have it, refuses it or cannot be reached, and the cache lacks it.
        UnsupportedModelError: it has no safetensors, or its config is refused; the weights were not downloaded then.
        LlamaGPUError: the cache cannot be written.
    """
    check_revision(revision)
    held = Repo(model).cached(revision)
    if held is not None and not refresh and is_cached(model, revision):
        log.info("%s: commit %.7s from the cache (llamagpu models --update %s asks the hub)", model, held.commit, model)
        return held.path
    missing = [CONFIG] if held is None else held.missing()
    if offline():
        if not missing:
            raise UsageError(f"{model} cannot be updated.", "HF_HUB_OFFLINE is set.", "Unset it to ask the hub.")
        raise not_cached(model, [] if held is None else missing)
    try:
        with our_errors(model, revision), asking_hub(model):
            listing = ask_hub(model, revision)
    except ModelNotFoundError as e:
        if held is None or missing or refresh:
            raise
        log.warning("%s: the cached files are used, because the hub gave no answer (%s)", model, e.why)
        return held.path
    with our_errors(model, revision):
        _download_model(listing, fit)
    return listing.snapshot.path


def hub_file(model: str, name: str, revision: str | None = None, refresh: bool = False, fit: Fit | None = None) -> Path:
    """A GGUF file of a hub repo in the cache; of a split one the first part, with all others beside it. A file that
    cannot ``fit`` is not downloaded.

    Raises:
        OutOfMemoryError: see ``Fit``.
        ModelNotFoundError: see ``hub_model``; or the repo lacks the file, and the message lists those that it has.
        LlamaGPUError: the cache cannot be written.
    """
    check_revision(revision)
    names = gguf_parts(name)
    held = Repo(model).cached(revision)
    if held is not None and held.has(names) and not refresh:
        return held.path / names[0]
    if offline():
        raise not_cached(f"{model}:{name}")
    with our_errors(model, revision):
        with asking_hub(model):
            listing = ask_hub(model, revision)
        if any(part not in listing.files for part in names):
            found = ", ".join(listing.gguf_files()) or "none"
            raise ModelNotFoundError(
                f"{model} has no file {next(part for part in names if part not in listing.files)}.",
                f"Its GGUF files: {found}.",
                "Check the name after the colon.",
            )
        if fit is not None:
            fit.check_size(f"{model}:{name}", total_size(listing.files[part] for part in names))
        _download_files(listing, names)
        listing.snapshot.record(listing.revision, [])
    return listing.snapshot.path / names[0]


def is_cached(model: str, revision: str | None) -> bool:
    """Whether a hub model opens without asking the hub: nothing is missing, and no optional file may be."""
    held = Repo(model).cached(revision)
    return held is not None and not held.missing() and (offline() or not held.unknown())


def _download_model(listing: Listing, fit: Fit | None) -> None:
    """Download what is missing: the configs, which may be refused, then the tokenizer, then the weights."""
    listing.require_model()
    _download_small(listing, [CONFIG, GENERATION])
    check_config(listing.snapshot.path)
    if not {"tokenizer.json", "tokenizer.model"} & set(listing.files):
        log.warning("%s has no tokenizer.json: it cannot generate text", listing.repo.id)
    _download_small(listing, [n for n in listing.files if n in (*OPTIONAL, *ENCODERS) or _FOLDERS.fullmatch(n)])
    weights = _weights(listing)
    lacking = [name for name in weights if not (listing.snapshot.path / name).exists()]
    stored = total_size(listing.files[name] for name in weights)
    if fit is not None and lacking and not fit.is_certain(stored):
        with quiet():
            fit.check(listed_headers(listing))
    _download_files(listing, weights)
    listing.snapshot.record(listing.revision, [name for name in (*OPTIONAL, *ENCODERS) if name not in listing.files])


def _download_small(listing: Listing, names: list[str]) -> None:
    for name in names:
        if name in listing.files:
            _download(listing, name)


def check_config(directory: Path) -> None:
    """Refuse an unsupported model before its weights are downloaded. Warnings are left to the loading.

    Raises:
        UnsupportedModelError: see ``parse_config`` and ``parse_encoder``.
    """
    config, generation = load_config(directory), directory / GENERATION
    with quiet():
        if is_encoder(config):
            parse_encoder(config)
        else:
            parse_config(config, load_json(generation) if generation.exists() else {})


def _weights(listing: Listing) -> list[str]:
    """The safetensors files to read: those of the index, or the only one."""
    if INDEX not in listing.files:
        return [listing.weights_file()]
    _download(listing, INDEX)
    shards = sorted(set(read_index(listing.snapshot.path).values()))
    lost = [shard for shard in shards if shard not in listing.files]
    if lost:
        raise UnsupportedModelError(f"{listing.repo.id} lacks {lost[0]}, which its index names.")
    return shards


def _download_files(listing: Listing, names: list[str]) -> None:
    """Download large files one after another, if the disk has room for them."""
    snapshot = listing.snapshot
    lacking = [name for name in names if not (snapshot.path / name).exists()]
    files = [listing.files[name] for name in lacking]
    size = total_size(files)
    need = size - sum(_present(listing.repo, file) for file in files)
    listing.repo.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(listing.repo.folder).free
    if need > free:
        raise disk_full(listing.repo.id, f"It needs {need / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free.")
    if lacking:
        log.info("downloading %s: %.1f MB to %s", listing.repo.id, size / 1e6, listing.repo.folder)
    for name in lacking:
        _download(listing, name)


def _present(repo: Repo, file: Announced) -> int:
    """The bytes of a file that were downloaded before."""
    if file.digest is None:
        return 0
    blob = repo.blob(file.digest)
    path = blob if blob.exists() else _partial(blob)
    return path.stat().st_size if path.exists() else 0


def _download(listing: Listing, name: str) -> None:
    """A file of the listing in the snapshot: there already, from a blob that another commit shares, or downloaded."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import WeakFileLock

    announced, repo = listing.files[name], listing.repo
    if (listing.snapshot.path / name).exists():
        return
    if announced.digest is None or announced.size is None:
        hf_hub_download(repo.id, name, revision=listing.commit)
        return
    blob, lock = repo.blob(announced.digest), repo.lock(announced.digest)
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not blob.exists():
            _download_blob(listing, name, blob)
        listing.snapshot.link(name, announced.digest)


def _partial(blob: Path) -> Path:
    """The beginning of a blob whose download was interrupted, as the hub's library names it."""
    return blob.with_name(f"{blob.name}.incomplete")


def _download_blob(listing: Listing, name: str, blob: Path) -> None:
    """Download a file, or the rest of it, and check it. An interruption leaves its beginning for the next attempt."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    partial, announced = _partial(blob), listing.files[name]
    headers = build_hf_headers(library_name="llamagpu", library_version=__version__)
    headers["Accept-Encoding"] = "identity"  # a part of a compressed file cannot be continued
    if partial.exists() and partial.stat().st_size > (announced.size or 0):
        partial.unlink()
    try:
        with partial.open("ab") as file:
            http_get(
                listing.url(name),
                file,
                resume_size=file.tell(),
                headers=headers,
                expected_size=announced.size,
                displayed_filename=name,
            )
    except Exception as e:
        if status_of(e) == 416 or "Consistency check failed" in str(e):
            raise _differs(listing, name, partial, str(e).splitlines()[0]) from None
        raise
    difference = announced.differs(partial)
    if difference:
        raise _differs(listing, name, partial, difference)
    os.replace(partial, blob)


def _differs(listing: Listing, name: str, partial: Path, why: str) -> LlamaGPUError:
    """The error for a file that is not what the hub announced; what there is of it is deleted."""
    partial.unlink(missing_ok=True)
    hint = "It was deleted. Try again; if it happens again, a proxy or mirror may change the file."
    return ModelNotFoundError(f"{name} of {listing.repo.id} was not downloaded correctly.", why, hint)
