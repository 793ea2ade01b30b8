"""What an ``LLM`` holds on its device beside the weights: LoRA adapters, and the cache of prompts."""

from __future__ import annotations

from pathlib import Path

from llamagpu.engine.arguments import checked_name, checked_path
from llamagpu.engine.language_model import LanguageModel
from llamagpu.model.lora_stack import unknown


class AdaptableModel(LanguageModel):
    """A decoder with LoRA adapters, and with a cache of prompts that can be kept; the base of ``LLM``."""

    @property
    def adapters(self) -> dict[str, str]:
        """The loaded adapters by name, each with a hash (SHA-256) of its matrices and scales."""
        return self._session.digests

    def add_adapter(self, name: str, path: str | Path) -> None:
        """Load a LoRA adapter under a name that is free. Only its matrices are uploaded; generation waits meanwhile.

        Args:
            path: a directory that PEFT wrote, or a GGUF file of llama.cpp.

        Raises:
            UsageError: the name is taken, or the model is isolated.
            ModelNotFoundError: a file is missing.
            UnsupportedModelError: the adapter is broken, not supported, or belongs to another model.
            OutOfMemoryError: it does not fit; the others stay as they are.
            DeviceLostError: the model is closed.
        """
        self._check_open()
        self._session.add_adapter(checked_name(name), checked_path(path))

    def remove_adapter(self, name: str) -> None:
        """Free a loaded adapter.

        Raises:
            UsageError: there is none of this name, or a generation uses it, or the model is isolated.
            DeviceLostError: the model is closed.
        """
        self._check_open()
        self._session.remove_adapter(name)

    def save_cache(self, path: str | Path) -> int:
        """Write what the cache knows of earlier prompts and texts to a file; returns its tokens.

        Generation waits meanwhile. Until the file is complete, the name keeps what it had.

        Raises:
            LlamaGPUError: writing failed, for example because the disk is full.
            UsageError: the model is isolated: its cache is in another process.
        """
        self._check_open()
        return self._session.save_cache(Path(path))

    def load_cache(self, path: str | Path) -> int:
        """Add the tokens of a file of ``save_cache`` to the cache, where that has room; returns their number. Prompts
        that begin with them cost only their other tokens, and give the bits that they give without.

        Generation waits meanwhile. Load only files that you would load a model from: they hold keys and values.

        Raises:
            UsageError: the file is missing, damaged, or of another model, dtype, adapter, tuning or version; or the
                model is isolated.
        """
        self._check_open()
        return self._session.load_cache(Path(path))

    def _check_adapter(self, name: str | None) -> None:
        """Raises UsageError for an adapter that is not loaded."""
        if name is not None and name not in self._session.digests:
            raise unknown(name, self._session.digests)
