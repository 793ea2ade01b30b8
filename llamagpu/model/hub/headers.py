"""A hub model without its weights: config and tensor headers by range requests, for ``llamagpu inspect``."""

from __future__ import annotations

import io
import shutil
import struct
import tempfile
import weakref
from pathlib import Path

from llamagpu.errors import UnsupportedModelError
from llamagpu.model.hub.cache import CONFIG, GENERATION, offline
from llamagpu.model.hub.errors import not_cached, our_errors
from llamagpu.model.hub.listing import Listing, ask_hub
from llamagpu.model.hub.logs import asking_hub
from llamagpu.model.sources import HuggingFace, open_directory
from llamagpu.model.sources.safetensors import INDEX, MOST_HEADER, Checkpoint, Entry, parse_header, read_index
from llamagpu.version import __version__

_FIRST_BYTES = 100_000  # hold nearly every header


def hub_headers(model: str, revision: str | None) -> HuggingFace:
    """A hub model whose config and tensor headers were fetched; its weights stay on the hub. Nothing is cached.

    Raises:
        ModelNotFoundError: the hub cannot be reached, or does not have the model.
        UnsupportedModelError: it has no safetensors, or they are broken.
    """
    if offline():
        raise not_cached(model)
    with our_errors(model, revision), asking_hub(model):
        return listed_headers(ask_hub(model, revision))


def listed_headers(listing: Listing) -> HuggingFace:
    """As ``hub_headers``, of a listing."""
    model = listing.repo.id
    parent = Path(tempfile.mkdtemp(prefix="llamagpu-hub-"))
    folder = parent / model.replace("/", "--")
    folder.mkdir()
    try:
        listing.require_model()
        for name in (CONFIG, GENERATION, INDEX):
            if name in listing.files:
                (folder / name).write_bytes(_get(listing, name)[0])
        source = open_directory(folder, Checkpoint(_entries(listing, folder)))
        source.name = model
    except BaseException:
        shutil.rmtree(parent, ignore_errors=True)
        raise
    weakref.finalize(source, shutil.rmtree, parent, ignore_errors=True)
    return source


def _entries(listing: Listing, folder: Path) -> dict[str, Entry]:
    """Every tensor, from the headers of the files that ``listing`` has for it."""
    if not (folder / INDEX).exists():
        return _header(listing, listing.weights_file())
    index = read_index(folder)
    headers = {shard: _header(listing, shard) for shard in sorted(set(index.values()))}
    for name, shard in index.items():
        if name not in headers[shard]:
            raise UnsupportedModelError(f"{shard} of {listing.repo.id} lacks {name}, which the index places there.")
    return {name: headers[shard][name] for name, shard in index.items()}


def _header(listing: Listing, name: str) -> dict[str, Entry]:
    begins, size = _get(listing, name, _FIRST_BYTES)
    length = struct.unpack("<Q", begins[:8])[0] if len(begins) >= 8 else 0
    if len(begins) < 8 + length <= min(size, MOST_HEADER):
        begins, size = _get(listing, name, 8 + length)
    return parse_header(Path(name), io.BytesIO(begins), size)


def _get(listing: Listing, name: str, first: int | None = None) -> tuple[bytes, int]:
    """A file, or its ``first`` bytes; and its size."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = build_hf_headers(library_name="llamagpu", library_version=__version__)
    headers["Accept-Encoding"] = "identity"
    if first is not None:
        headers["Range"] = f"bytes=0-{first - 1}"
    response = get_session().get(listing.url(name), headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    hf_raise_for_status(response)
    size = response.headers.get("Content-Range", "").rpartition("/")[2]
    return response.content, int(size) if size.isdigit() else len(response.content)
