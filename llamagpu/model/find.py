"""Finding a model: the bundled one, a directory, a file, or a hub id."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path

from llamagpu.errors import LlamaGPUError, ModelNotFoundError, UsageError, shown
from llamagpu.model.hub import Fit, adapter_error, hub_file, hub_model, repo_of
from llamagpu.model.sources import Source, open_path
from llamagpu.model.sources.files import PICKLED, open_file, pickled

DEFAULT_MODEL = "stories"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILE = re.compile(rf"({_HUB_ID.pattern}):((?:[\w. +=-]+/)*[\w. +=-]+\.gguf)", re.IGNORECASE)
_KINDS = "A model is a directory, a safetensors or GGUF file, or a hub id (owner/name, owner/name:file.gguf)."


def bundled_models() -> Path:
    """The folder of the bundled models."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "weights"
    return inside if inside.is_dir() else package.parent / "weights"


def find_model(
    model: str | Path | None, revision: str | None = None, refresh: bool = False, fit: Fit | None = None
) -> Path:
    """The directory or GGUF file of a model: the bundled one (None), a directory, a safetensors file in one, a GGUF
    file, a hub id, or a GGUF file of a hub repo (``owner/name:file.gguf``).

    Of a hub model the files that are read (config, tokenizer, safetensors) are downloaded to the hub's cache. A model
    that is complete there is opened without asking the hub. The hub's own variables hold: HF_HOME, HF_HUB_CACHE,
    HF_HUB_OFFLINE, HF_TOKEN and HF_ENDPOINT.

    Args:
        revision: of a hub id: a branch, a tag or a commit.
        refresh: ask the hub for a newer commit of the revision, even if the cache is complete.
        fit: refuses a hub model that does not fit the memory, before its weights are downloaded.

    Raises:
        OutOfMemoryError: see ``fit``.
        ModelNotFoundError: the path does not exist, or the hub cannot be reached and its cache lacks the model.
        UnsupportedModelError: it is a LoRA adapter, or the hub's model has no safetensors.
        UsageError: it is no name of a model, or no revision.
    """
    try:
        return _find(model, revision, refresh, fit)
    except LlamaGPUError:
        raise
    except (OSError, RuntimeError) as e:  # a folder that may not be read, a name that is too long, an unknown user's ~
        why = getattr(e, "strerror", None) or str(e)
        raise ModelNotFoundError(f"The model {shown(str(model))} cannot be read.", why, "Check the path.") from None


def _find(model: str | Path | None, revision: str | None, refresh: bool, fit: Fit | None) -> Path:
    if model is None or (str(model) == DEFAULT_MODEL and not Path(DEFAULT_MODEL).is_dir()):
        return _found(bundled_models() / DEFAULT_MODEL, revision)
    if not isinstance(model, (str, Path)) or not str(model).strip():
        raise UsageError(f"{model!r:.60} is not a model.", _KINDS)
    path = Path(model).expanduser()
    if path.exists():
        return _found(path, revision)
    found = _from_hub(str(model), revision, refresh, fit)
    if found is not None:
        return found
    similar = _similar(path)
    raise ModelNotFoundError(
        f"There is no model {'file' if path.suffix else 'directory'} {path}.",
        _KINDS,
        f"Did you mean {similar}?" if similar else "Check the path.",
    )


def _from_hub(model: str, revision: str | None, refresh: bool, fit: Fit | None) -> Path | None:
    """The path of a hub id; None if it cannot be one."""
    try:
        file = _HUB_FILE.fullmatch(model)
        if file:
            return hub_file(file[1], file[2], revision, refresh, fit)
        return hub_model(model, revision, refresh, fit) if is_hub_id(model) else None
    except ModelNotFoundError as e:
        similar = _similar(Path(model).expanduser())
        raise (ModelNotFoundError(e.what, e.why, f"{e.hint} Or did you mean {similar}?") if similar else e) from None


def open_source(path: Path) -> Source:
    """The source of a model that ``find_model`` found: a directory, or a GGUF file.

    Raises:
        ModelNotFoundError: a file of the directory is missing.
        UnsupportedModelError: a file is broken.
    """
    found = open_path(path)
    if path.is_dir():
        found.name = repo_of(path) or found.name
    return found


def is_hub_id(model: str | Path) -> bool:
    """Whether a name could be a hub id (owner/name) and is not a path here."""
    return isinstance(model, str) and bool(_HUB_ID.fullmatch(model)) and not os.path.exists(os.path.expanduser(model))


def _found(path: Path, revision: str | None) -> Path:
    """The model of a path that exists."""
    if revision is not None:
        raise UsageError(f"{path} has no revision {revision!r}.", "It is a path here; only hub ids have revisions.")
    if path.is_file() and (path.suffix.lower() == ".gguf" or _begins_as_gguf(path)):
        return path
    if path.is_file() and path.suffix.lower() in PICKLED:
        raise pickled(path)
    directory = path.parent if path.is_file() and path.suffix == ".safetensors" else path
    if not directory.is_dir():
        raise ModelNotFoundError(f"{path} is not a model.", _KINDS)
    if (directory / "adapter_config.json").is_file() and not (directory / "config.json").is_file():
        raise adapter_error(directory)
    return directory


def _begins_as_gguf(path: Path) -> bool:
    with open_file(path) as file:
        return file.read(4) == b"GGUF"


def _similar(path: Path) -> Path | None:
    """A path beside a missing one whose name is nearly the same."""
    try:
        close = get_close_matches(path.name, [p.name for p in path.parent.iterdir() if p.name != path.name], n=1)
    except OSError:  # there is no such directory
        return None
    return path.parent / close[0] if close else None
