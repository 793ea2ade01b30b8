"""The text layer: tokenizer, streaming decode, stop strings."""

from llamagpu.text.stream import StopFilter, TextStream
from llamagpu.text.tokenizer import Tokenizer

__all__ = ["StopFilter", "TextStream", "Tokenizer"]
