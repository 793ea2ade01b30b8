"""JavaScript libraries of an exported site: packages of npm, pinned by version and hash, kept in the user's cache.

Only the first export needs the network. A package's tarball is checked against its hash every time it is read.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import os
import re
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from llamagpu.errors import LlamaGPUError, UsageError, shown
from llamagpu.gpu.tuning_store import cache_folder

REGISTRY = "npm_config_registry"  # npm's own variable for another registry
_DEFAULT_REGISTRY = "https://registry.npmjs.org"
_SECONDS = 30  # without an answer
_MOST_BYTES = 8 << 20  # of a tarball; the largest here has 0.2 MB


@dataclass(frozen=True)
class Library:
    """A package of npm, and what a site takes of it.

    Args:
        package: the name, with its scope.
        version: the exact version.
        integrity: the SHA-512 of the tarball in base64, as npm's lock files have it after ``sha512-``.
        module: the ES module in the tarball. It imports nothing.
        file: the module's name in the site. It ends with .js, because some servers do not know .mjs.
        license: the license's SPDX name. Its text is in the tarball.
    """

    package: str
    version: str
    integrity: str
    module: str
    file: str
    license: str

    @property
    def tarball(self) -> str:
        """The tarball's path at a registry."""
        return f"{self.package}/-/{self.package.rpartition('/')[2]}-{self.version}.tgz"

    @property
    def cached(self) -> Path:
        """Where the tarball is kept."""
        name = self.package.removeprefix("@").replace("/", "-")
        return cache_folder() / "libraries" / f"{name}-{self.version}.tgz"


TOKENIZERS = Library(
    "@huggingface/tokenizers",
    "0.2.0",
    "LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
    "package/dist/tokenizers.min.mjs",
    "tokenizers.js",
    "Apache-2.0",
)
JINJA = Library(
    "@huggingface/jinja",
    "0.5.11",
    "YzEzwM5oQf4r0vs7ifWQ+yuVR1YkAHrjERQ+a8WRsStHHp4NRBg+NesjiFc+X2AFUpRvvrIeHDS1xFy9jY/IjQ==",
    "package/dist/index.js",
    "jinja.js",
    "MIT",
)
LIBRARIES = (TOKENIZERS, JINJA)


def write_libraries(folder: Path, libraries: tuple[Library, ...] = LIBRARIES) -> list[Path]:
    """Write the modules of libraries and the texts of their licenses into a folder, which is made if it is missing.

    Returns:
        The files, such as ``tokenizers.js`` and ``tokenizers.LICENSE.txt``.

    Raises:
        LlamaGPUError: see ``fetched``.
    """
    files = {name: data for library in libraries for name, data in _files(library).items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


def fetched(library: Library) -> bytes:
    """A library's tarball from the cache, or else from the registry that ``npm_config_registry`` names, or npm's.

    Raises:
        LlamaGPUError: it is in neither, it has another hash, or the cache cannot be written.
        UsageError: the registry's address is none.
    """
    try:
        data = library.cached.read_bytes()
    except OSError:
        data = b""
    if not _is_right(library, data):  # a damaged file is fetched again
        data = _download(library)
        _keep(library, data)
    return data


def _files(library: Library) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(fetched(library)), mode="r:gz") as tar:

        def read(name: str) -> bytes:
            member = tar.extractfile(name)
            assert member is not None  # the hash fixes what is in the tarball
            return member.read()

        license = read("package/LICENSE")
        stated = f"// {library.package} {library.version}, {library.license}: {_license_file(library)}\n"
        return {library.file: stated.encode() + read(library.module), _license_file(library): license}


def _license_file(library: Library) -> str:
    return f"{Path(library.file).stem}.LICENSE.txt"


def _is_right(library: Library, data: bytes) -> bool:
    return base64.b64encode(hashlib.sha512(data).digest()).decode() == library.integrity


def _download(library: Library) -> bytes:
    registry = _registry()
    address = f"{registry}/{library.tarball}"
    try:
        with urllib.request.urlopen(address, timeout=_SECONDS) as answer:
            data: bytes = answer.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException) as e:  # URLError, HTTPError and timeouts are OSErrors
        raise _not_fetched(library, registry, e) from None
    if not _is_right(library, data):
        raise LlamaGPUError(
            f"{library.package} {library.version} from {registry} is not the expected file.",
            f"Its {len(data):,} bytes have another SHA-512 than this version of llamagpu knows.",
            f"Try again. If it stays so, do not trust that registry; {REGISTRY} names another one.",
        )
    return data


def _registry() -> str:
    given = os.environ.get(REGISTRY) or _DEFAULT_REGISTRY
    parts = urlsplit(given)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        named = re.sub("//.*@", "//…@", given)  # a password must not be shown
        raise UsageError(
            f"{REGISTRY} is {shown(named)}, which is not the address of a registry.",
            "It is an http or https address without a user's name.",
            f"Correct it, or unset {REGISTRY}.",
        )
    return given.rstrip("/")


def _not_fetched(library: Library, registry: str, error: Exception) -> LlamaGPUError:
    if isinstance(error, urllib.error.HTTPError):
        why, hint = f"{registry} answered {error.code} {error.reason}.", f"{REGISTRY} names another registry."
        error.close()
    else:
        why = f"{registry} cannot be reached: {getattr(error, 'reason', None) or error or type(error).__name__}."
        hint = f"Export once with a network; later exports read {library.cached.parent}."
    return LlamaGPUError(
        f"The JavaScript library {library.package} {library.version} could not be fetched.",
        f"{why} A site needs it to make tokens of text.",
        hint,
    )


def _keep(library: Library, data: bytes) -> None:
    path = library.cached
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)  # other processes see no file or the whole one
    except OSError as e:
        raise LlamaGPUError(
            f"{path} could not be written.",
            e.strerror or str(e),
            "Check the folder's permissions, or set LLAMAGPU_CACHE to another one.",
        ) from None
