"""Models that are not simply here: other formats, which are named in the error, and the hub."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llamagpu.errors import UnsupportedModelError

log = logging.getLogger("llamagpu")
_SILENCE_S = 3.0  # of the hub, before a line says what is waited for
HUB_TIMEOUT_S = 5.0


def refuse_gguf(path: Path) -> None:
    """Raises UnsupportedModelError for a file in llama.cpp's format."""
    if path.is_dir():
        return
    begins = b""
    if path.is_file():
        try:
            with path.open("rb") as file:
                begins = file.read(4)
        except OSError:  # whoever reads it next says why
            pass
    if begins == b"GGUF" or path.suffix.lower() == ".gguf":
        raise UnsupportedModelError(
            f"{path} is a GGUF file.",
            "That is llama.cpp's format, which is not supported.",
            "Take the model's safetensors, or convert it with transformers (from_pretrained has gguf_file).",
        )


def refuse_adapter(directory: Path) -> Path:
    """The directory; raises UnsupportedModelError where it holds the changes to a model and not the model."""
    if (directory / "adapter_config.json").is_file() and not (directory / "config.json").is_file():
        raise UnsupportedModelError(
            f"{directory} holds a LoRA adapter.",
            "It is a change to a base model, and no model by itself. Adapters are not supported.",
            "Merge it into its base model (peft: merge_and_unload), save that, and give its directory.",
        )
    return directory


@contextmanager
def asking_hub(model: str) -> Iterator[None]:
    """Log a line where the block takes long: finding the hub's address alone can take half a minute without a word."""
    line = "the hub is being asked for %s (HF_HUB_OFFLINE=1 takes only what its cache holds)"
    timer = threading.Timer(_SILENCE_S, log.warning, (line, model))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
