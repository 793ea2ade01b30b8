"""Finding a model: the bundled one, a directory, or a hub id; other formats are named in the error."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llamagpu.errors import LlamaGPUError, ModelNotFoundError, UnsupportedModelError, UsageError
from llamagpu.model.sources import HuggingFace, open_directory
from llamagpu.model.sources.safetensors import Checkpoint, Entry

log = logging.getLogger("llamagpu")
DEFAULT_MODEL = "stories"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]
_SILENT_SECONDS = 3.0  # time to wait for the hub before a line is logged
_HUB_TIMEOUT_SECONDS = 5.0
_KINDS = "A model is a directory, a safetensors or GGUF file, or a hub id."


def bundled_models() -> Path:
    """The folder of the bundled models."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "weights"
    return inside if inside.is_dir() else package.parent / "weights"


def find_model(model: str | Path | None, revision: str | None = None) -> Path:
    """The directory of a model, or its GGUF file: the bundled model (None), a path, or a hub id.

    A hub id is downloaded (config, tokenizer, safetensors) or taken from the hub's cache.

    Raises:
        ModelNotFoundError: the path does not exist, or the hub cannot be reached and its cache lacks the model.
        UnsupportedModelError: it is a LoRA adapter.
    """
    if model is None or (str(model) == DEFAULT_MODEL and not Path(DEFAULT_MODEL).is_dir()):
        return bundled_models() / DEFAULT_MODEL
    if not isinstance(model, (str, Path)) or not str(model).strip():
        raise UsageError(f"{model!r:.60} is not a model.", _KINDS)
    path = Path(model).expanduser()
    if revision is not None and path.exists():
        raise UsageError(f"{path} has no revision {revision!r}.", "It is a path here; only hub ids have revisions.")
    if _is_gguf(path):
        return path
    if path.is_dir():
        return _refuse_adapter(path)
    if path.is_file() and path.suffix == ".safetensors":
        return _refuse_adapter(path.parent)
    if path.exists():
        raise ModelNotFoundError(f"{path} is not a model.", _KINDS)
    if is_hub_id(model):
        return _refuse_adapter(_download(str(model), revision))
    raise ModelNotFoundError(
        f"There is no model directory {path}.",
        "A model is a directory with config.json, or a hub id such as owner/name.",
        "Check the path.",
    )


def is_hub_id(model: str | Path) -> bool:
    """Whether a name could be a hub id (owner/name) and is not a path here."""
    return isinstance(model, str) and not Path(model).expanduser().exists() and bool(_HUB_ID.fullmatch(model))


def _is_gguf(path: Path) -> bool:
    """Whether a file is in llama.cpp's format."""
    if not path.is_file():
        return False
    begins = b""
    try:
        with path.open("rb") as file:
            begins = file.read(4)
    except OSError:  # the next read reports the error
        pass
    return begins == b"GGUF" or path.suffix.lower() == ".gguf"


def _refuse_adapter(directory: Path) -> Path:
    """The directory; raises UnsupportedModelError if it holds a LoRA adapter without a model."""
    if (directory / "adapter_config.json").is_file() and not (directory / "config.json").is_file():
        raise UnsupportedModelError(
            f"{directory} holds a LoRA adapter.",
            "An adapter is a change to a base model, and is not supported by itself.",
            "Merge it into its base model (peft: merge_and_unload), save that, and give its directory.",
        )
    return directory


@contextmanager
def _asking_hub(model: str) -> Iterator[None]:
    """Log a line if the block takes long: resolving the hub's address alone can take half a minute."""
    line = "waiting for the hub about %s (HF_HUB_OFFLINE=1 uses its local cache only)"
    timer = threading.Timer(_SILENT_SECONDS, log.warning, (line, model))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        with _asking_hub(model):
            return Path(snapshot_download(model, revision=revision, allow_patterns=_HUB_FILES))
    except (RepositoryNotFoundError, HFValidationError) as e:
        raise ModelNotFoundError(
            f"There is no model {model} on the hub, and no such directory here.", _reason(e), "Check the name."
        ) from None
    except Exception as e:  # the hub's errors have many roots
        raise ModelNotFoundError(
            f"The model {model} could not be fetched from the hub, and its cache does not hold it.",
            _reason(e),
            "Check the network (and HF_HUB_OFFLINE), or give the path of a model directory.",
        ) from None


def hub_headers(model: str, revision: str | None) -> HuggingFace:
    """A hub model whose config and tensor headers were fetched by range requests; its weights stay there.

    Raises:
        ModelNotFoundError: the hub cannot be reached, or does not have the model.
    """
    import huggingface_hub

    folder = Path(tempfile.mkdtemp(prefix="llamagpu-hub-")) / model.replace("/", "--")
    folder.mkdir()
    try:
        with _asking_hub(model):
            # The hub's other functions retry silently for half a minute if it cannot be reached.
            huggingface_hub.model_info(model, revision=revision, timeout=_HUB_TIMEOUT_SECONDS)
            for name in ("config.json", "generation_config.json"):
                try:
                    path = huggingface_hub.hf_hub_download(model, name, revision=revision)
                    (folder / name).write_bytes(Path(path).read_bytes())
                except huggingface_hub.errors.LocalEntryNotFoundError:
                    raise  # the hub was not reached
                except huggingface_hub.errors.EntryNotFoundError:
                    continue
            metadata = huggingface_hub.get_safetensors_metadata(model, revision=revision)
    except LlamaGPUError:
        raise
    except Exception as e:  # the hub's errors have many roots
        raise ModelNotFoundError(
            f"The headers of {model} could not be read from the hub.", _reason(e), "Check the name and the network."
        ) from None
    entries = {}
    for file, part in metadata.files_metadata.items():
        for name, t in part.tensors.items():
            begin, end = t.data_offsets
            entries[name] = Entry(Path(file), t.dtype, tuple(t.shape), begin, end)
    source = open_directory(folder, Checkpoint(entries))
    weakref.finalize(source, shutil.rmtree, folder.parent, ignore_errors=True)
    return source


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
