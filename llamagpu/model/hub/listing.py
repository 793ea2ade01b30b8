"""What the hub says of a model: the commit of a revision, and its files with their sizes and hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamagpu.errors import ModelNotFoundError, UnsupportedModelError, UsageError
from llamagpu.model.hub.cache import CONFIG, DEFAULT_REVISION, Repo, Snapshot, is_commit, weights_file
from llamagpu.model.hub.errors import adapter_error
from llamagpu.model.sources.safetensors import INDEX
from llamagpu.version import __version__

_WEIGHTS = (".bin", ".gguf", ".onnx", ".pt", ".pth", ".safetensors")


@dataclass(frozen=True)
class Announced:
    """The size of a file in bytes, and its hash: SHA-256 if it is large, git's SHA-1 otherwise. Both are None if a
    mirror of the hub leaves them out."""

    size: int | None
    digest: str | None

    def differs(self, path: Path) -> str:
        """How a downloaded file differs from this; empty if it does not."""
        size = path.stat().st_size
        if size != self.size:
            return f"It has {size:,} bytes; the hub announced {self.size:,}."
        with path.open("rb") as file:
            found = hashlib.file_digest(file, self._hash).hexdigest()
        return "" if found == self.digest else f"Its hash is {found}; the hub announced {self.digest}."

    def _hash(self) -> Any:
        if self.digest is not None and len(self.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % (self.size or 0), usedforsecurity=False)


@dataclass(frozen=True)
class Listing:
    """The files of a revision of a hub model, by name."""

    repo: Repo
    revision: str
    commit: str
    files: dict[str, Announced]

    @property
    def snapshot(self) -> Snapshot:
        """The place of the files in the cache."""
        return self.repo.snapshot(self.commit)

    def url(self, name: str) -> str:
        """Where the hub serves a file."""
        from huggingface_hub import hf_hub_url

        return str(hf_hub_url(self.repo.id, name, revision=self.commit))

    def require_model(self) -> None:
        """Raise UnsupportedModelError if the repo lacks config.json or safetensors; the message names what it has."""
        if CONFIG in self.files:
            if INDEX not in self.files:
                self.weights_file()
            return
        gguf = self.gguf_files()
        if gguf:
            raise UnsupportedModelError(
                f"{self.repo.id} holds GGUF files and no config.json.",
                f"Its files: {', '.join(gguf)}.",
                f"Name one of them: {self.repo.id}:{gguf[0]}",
            )
        if "adapter_config.json" in self.files:
            raise adapter_error(self.repo.id)
        raise UnsupportedModelError(
            f"{self.repo.id} has no config.json.",
            "A model has config.json, tokenizer.json and *.safetensors.",
            "Choose another model.",
        )

    def weights_file(self) -> str:
        """The file with all weights, if they are not sharded.

        Raises:
            UnsupportedModelError: there is none; the message names the weights that the repo has.
        """
        single = weights_file(self.files)
        if single is None:
            other = sorted(name for name in self.files if name.endswith(_WEIGHTS))
            raise UnsupportedModelError(
                f"{self.repo.id} has no weights as safetensors in the layout of transformers.",
                f"It has {', '.join(other[:4])}." if other else "",
                "Choose another version of the model, or convert it with transformers (save_pretrained).",
            )
        return single

    def gguf_files(self) -> list[str]:
        """The names of its GGUF files."""
        return sorted(name for name in self.files if name.lower().endswith(".gguf"))


def ask_hub(model: str, revision: str | None) -> Listing:
    """Ask the hub for a model's files: one request, which fails within the library's time limit.

    Raises:
        UsageError: ``revision`` cannot be the name of one.
        ModelNotFoundError: the answer is not that of a hub. The library's own errors pass (see ``our_errors``).
    """
    from huggingface_hub import HfApi, constants

    check_revision(revision)
    api = HfApi(library_name="llamagpu", library_version=__version__)
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    info = api.model_info(model, revision=revision, files_metadata=True, timeout=timeout)
    files = {s.rfilename: _announced(s) for s in info.siblings or () if _is_inside(s.rfilename)}
    if not isinstance(info.sha, str) or not is_commit(info.sha):
        raise ModelNotFoundError(
            f"{constants.ENDPOINT} gave no commit for {model}.", "It does not answer like a hub.", "Check HF_ENDPOINT."
        )
    return Listing(Repo(model), revision or DEFAULT_REVISION, info.sha, files)


def check_revision(revision: str | None) -> None:
    """Raise UsageError for what cannot be a branch, tag or commit; the cache has a file of its name."""
    if revision is not None and (not revision.strip() or revision.startswith("/") or ".." in revision):
        raise UsageError(f"{revision!r:.60} is not a revision.", "It is a branch, a tag or the hash of a commit.")


def _announced(sibling: Any) -> Announced:
    digest = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
    known = isinstance(sibling.size, int) and isinstance(digest, str) and len(digest) in (40, 64) and digest.isalnum()
    return Announced(sibling.size, digest) if known else Announced(None, None)


def _is_inside(name: str) -> bool:
    """Whether a file's name stays inside the directory of its repo."""
    return bool(name) and not any(part in ("", ".", "..") or "\\" in part for part in name.split("/"))


def total_size(files: Iterable[Announced]) -> int:
    """The announced bytes of some files."""
    return sum(file.size or 0 for file in files)
