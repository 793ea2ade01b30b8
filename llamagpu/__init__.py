"""Run small Llama models on any GPU from Python, by WebGPU.

from llamagpu import LLM
with LLM() as llm:
    print(llm.generate("Once upon a time").text)
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamagpu.engine import LLM, Result, Stream
    from llamagpu.errors import LlamaGPUError

__version__ = "0.1.0"
__all__ = ["LLM", "LlamaGPUError", "Result", "Stream", "__version__"]

logging.getLogger("llamagpu").addHandler(logging.NullHandler())
_HOMES = {"LLM": "engine", "Result": "engine", "Stream": "engine", "LlamaGPUError": "errors"}


def __getattr__(name: str) -> Any:  # what needs wgpu is imported when it is first used
    if name in _HOMES:
        return getattr(importlib.import_module(f"llamagpu.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'llamagpu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
