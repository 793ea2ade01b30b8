"""The text layer: tokenizer, chat templates, streaming decode, stop strings."""

from llamagpu.text.stream import StopFilter, TextStream
from llamagpu.text.template import ChatTemplate, special_tokens
from llamagpu.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "StopFilter", "TextStream", "Tokenizer", "special_tokens"]
