"""Run small Llama models on any GPU from Python, through WebGPU.

from llamagpu import LLM
with LLM() as llm:
    print(llm.generate("Once upon a time").text)
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from llamagpu.version import __version__

if TYPE_CHECKING:
    from llamagpu.browser import export
    from llamagpu.engine import LLM, AsyncLLM, AsyncStream, CrossEncoder, Embedder, Result, Stream
    from llamagpu.errors import BusyError, LlamaGPUError

__all__ = [
    "LLM",
    "AsyncLLM",
    "AsyncStream",
    "BusyError",
    "CrossEncoder",
    "Embedder",
    "LlamaGPUError",
    "Result",
    "Stream",
    "__version__",
    "export",
]

logging.getLogger("llamagpu").addHandler(logging.NullHandler())
_HOMES = {
    "AsyncLLM": "engine",
    "AsyncStream": "engine",
    "BusyError": "errors",
    "CrossEncoder": "engine",
    "Embedder": "engine",
    "LLM": "engine",
    "Result": "engine",
    "Stream": "engine",
    "LlamaGPUError": "errors",
    "export": "browser",
}


def __getattr__(name: str) -> Any:  # packages that need wgpu are imported at first use
    if name in _HOMES:
        return getattr(importlib.import_module(f"llamagpu.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'llamagpu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
