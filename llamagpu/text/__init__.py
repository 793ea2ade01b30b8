"""The text layer: tokenizer, chat templates, streaming decode, stop strings."""

from llamagpu.text.stream import StopFilter, TextStream
from llamagpu.text.template import ChatTemplate, load_chat_template
from llamagpu.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "StopFilter", "TextStream", "Tokenizer", "load_chat_template"]
