"""The text layer: tokenizer, chat templates, streaming decode, stop strings."""

from llamagpu.text.marks import Rendered
from llamagpu.text.messages import Message
from llamagpu.text.stream import StopFilter, TextStream
from llamagpu.text.template import ChatTemplate, ChatTemplates, Conversation, special_tokens
from llamagpu.text.tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "ChatTemplates",
    "Conversation",
    "Message",
    "Rendered",
    "StopFilter",
    "TextStream",
    "Tokenizer",
    "special_tokens",
]
