"""GGUF files: headers, architectures, tokenizers and tensor types."""

from llamagpu.model.sources.gguf.source import Gguf, open_gguf

__all__ = ["Gguf", "open_gguf"]
