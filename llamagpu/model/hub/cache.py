"""The hub's cache on this machine, in huggingface_hub's layout: ``blobs`` by hash, ``snapshots`` by commit, ``refs`` by
branch or tag, and ``.no_exist`` for files that a commit lacks.

The layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llamagpu.errors import LlamaGPUError
from llamagpu.model.encoder_config import is_encoder
from llamagpu.model.sources.files import load_config
from llamagpu.model.sources.safetensors import INDEX, SINGLE, read_index

log = logging.getLogger("llamagpu")
DEFAULT_REVISION = "main"
CONFIG = "config.json"
GENERATION = "generation_config.json"
# Files that a model may lack. Without a record that the repo has none, they may have been left out of the cache.
OPTIONAL = (
    GENERATION,
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
ENCODERS = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")  # more of an encoder
_COMMIT = re.compile(r"[0-9a-f]{40}")
# A shard, a copy of the weights under Mistral's own names, an adapter, and files of folders.
_NOT_ALONE = re.compile(r".*-\d{5}-of-\d{5}\.|consolidated|adapter_|.*/")
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


def cache_folder() -> Path:
    """The hub's cache: HF_HUB_CACHE, or ``hub`` in HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def repo_of(path: Path) -> str | None:
    """The hub id of a snapshot's directory; None for other directories."""
    folder = path.parent.parent.name
    if path.parent.name != "snapshots" or not folder.startswith("models--"):
        return None
    return folder.removeprefix("models--").replace("--", "/", 1)


def is_commit(revision: str) -> bool:
    """Whether a revision is a full commit hash."""
    return bool(_COMMIT.fullmatch(revision))


@dataclass(frozen=True)
class Repo:
    """A hub repo's folder in the cache. ``id`` is owner/name."""

    id: str

    @property
    def folder(self) -> Path:
        """The folder; it may not exist."""
        return cache_folder() / f"models--{self.id.replace('/', '--')}"

    def snapshot(self, commit: str) -> Snapshot:
        """The files of a commit."""
        return Snapshot(self, commit)

    def cached(self, revision: str | None) -> Snapshot | None:
        """The cached files of a branch, tag or commit; None if there are none."""
        commit = self._commit(revision or DEFAULT_REVISION)
        snapshot = None if commit is None else self.snapshot(commit)
        return snapshot if snapshot is not None and snapshot.path.is_dir() else None

    def _commit(self, revision: str) -> str | None:
        if is_commit(revision):
            return revision
        try:
            commit = self.reference(revision).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
        return commit if is_commit(commit) else None

    def reference(self, revision: str) -> Path:
        """The file with the commit of a branch or tag."""
        return self.folder / "refs" / revision

    def blob(self, digest: str) -> Path:
        """The file with the content of this hash."""
        return self.folder / "blobs" / digest

    def lock(self, digest: str) -> Path:
        """The lock file of a blob, as other programs name it that use this cache."""
        return cache_folder() / ".locks" / self.folder.name / f"{digest}.lock"

    def partial_bytes(self) -> int:
        """The bytes of downloads that were interrupted."""
        return sum(path.stat().st_size for path in (self.folder / "blobs").glob("*.incomplete"))


@dataclass(frozen=True)
class Snapshot:
    """The cached files of one commit."""

    repo: Repo
    commit: str

    @property
    def path(self) -> Path:
        """The directory, in the layout of the repo."""
        return self.repo.folder / "snapshots" / self.commit

    def missing(self) -> list[str]:
        """Files that a model cannot do without and that are not here; empty if it can be opened."""
        config = [] if (self.path / CONFIG).exists() else [CONFIG]
        return config + self._missing_weights()

    def _missing_weights(self) -> list[str]:
        if (self.path / INDEX).exists():
            try:
                shards = set(read_index(self.path).values())
            except LlamaGPUError:  # opening the model reports the error
                return []
            return sorted(shard for shard in shards if not (self.path / shard).exists())
        files = [path.name for path in self.path.glob("*.safetensors") if path.exists()]
        return [] if weights_file(files) else [SINGLE]

    def unknown(self) -> list[str]:
        """Optional files that are not here, and of which nobody recorded that the repo has none."""
        try:
            names = (*OPTIONAL, *ENCODERS) if is_encoder(load_config(self.path)) else OPTIONAL
        except LlamaGPUError:  # opening the model reports the error
            names = OPTIONAL
        return [name for name in names if not ((self.path / name).exists() or self._absent(name).exists())]

    def has(self, names: list[str]) -> bool:
        """Whether these files are here."""
        return all((self.path / name).exists() for name in names)

    def _absent(self, name: str) -> Path:
        return self.repo.folder / ".no_exist" / self.commit / name

    def record(self, revision: str, absent: list[str]) -> None:
        """Record that this commit is complete: files that the repo lacks, and the branch or tag that it was found
        by. Call it last: an interrupted download must not look complete. A cache that cannot be written stays as it
        is, and the hub is asked again."""
        try:
            for name in absent:
                self._absent(name).parent.mkdir(parents=True, exist_ok=True)
                self._absent(name).touch()
            if not is_commit(revision):
                reference = self.repo.reference(revision)
                reference.parent.mkdir(parents=True, exist_ok=True)
                reference.write_text(self.commit, encoding="utf-8")
        except OSError as e:
            log.info("the hub's cache cannot be written: %s", e)

    def link(self, name: str, digest: str) -> None:
        """Make a blob a file of this commit: by a link, or by moving it where links are not allowed (Windows)."""
        pointer, blob = self.path / name, self.repo.blob(digest)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.unlink(missing_ok=True)  # a link whose blob was deleted
        try:
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:
            os.replace(blob, pointer)


def weights_file(names: Iterable[str]) -> str | None:
    """The file with all weights among a directory's files: model.safetensors, or else the only candidate."""
    found = [name for name in names if name.endswith(".safetensors") and not _NOT_ALONE.match(name)]
    return SINGLE if SINGLE in found else found[0] if len(found) == 1 else None


def gguf_parts(name: str) -> list[str]:
    """The names of all files of a GGUF model, by the name of one: ``x-00002-of-00003.gguf`` has three parts."""
    part = _PART.fullmatch(name)
    if not part:
        return [name]
    return [f"{part[1]}-{i:05}-of-{part[3]}{name[-5:]}" for i in range(1, int(part[3]) + 1)]
