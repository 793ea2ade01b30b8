"""Prompts of all kinds, made into checked token ids: text, ids, and conversations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamagpu.engine.arguments import items, whole_number
from llamagpu.errors import ContextFullError, UsageError, shown
from llamagpu.text import ChatTemplate, ChatTemplates, Conversation, Message, Tokenizer

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Prompts:
    """A model's way from prompts to ids. ``model`` is its name in messages."""

    model: str
    tokenizer: Tokenizer
    templates: ChatTemplates
    vocab_size: int
    context: int

    def ids(self, prompt: Prompt) -> list[int]:
        """The ids of a text, with BOS as the tokenizer says, or given ids as they are.

        Raises:
            UsageError: the prompt is empty, or has ids that the model lacks.
            ContextFullError: it is longer than the context.
        """
        if isinstance(prompt, str):
            self._check_characters(len(prompt), "prompt")
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else self.checked(prompt)
        if not ids or (isinstance(prompt, str) and not prompt):
            raise UsageError("The prompt is empty.", "There is nothing to continue.", "Give at least one character.")
        if len(ids) > self.context:
            raise ContextFullError(
                f"The prompt has {len(ids)} tokens; the context holds {self.context}.",
                "Nothing was cut.",
                "Shorten the prompt, or load the model with a larger context if it has one.",
            )
        return ids

    def checked(self, given: Iterable[int]) -> list[int]:
        """Token ids as ints, each one of this model."""
        ids = [whole_number(i, "a token id") for i in items(given, "token ids")]
        bad = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if bad is not None:
            raise UsageError(
                f"{shown(bad)} is not a token id of this model.", f"Ids run from 0 to {self.vocab_size - 1}."
            )
        return ids

    def chat(self, given: Conversation) -> list[int]:
        """The ids of a conversation. Special tokens in it are ordinary text; only the template writes them.

        Raises:
            UsageError: the model has no chat template, or the conversation is not valid, or the template refuses it.
            ContextFullError: it is far longer than the context; then it is not even tokenized.
        """
        template = self.template(given.tools)
        self._check_characters(_characters(given.messages), "conversation")
        rendered = template.render(given)
        self._check_characters(len(rendered.text), "conversation")
        return self.tokenizer.encode_chat(rendered)

    def template(self, tools: Any = None) -> ChatTemplate:
        """The chat template of a conversation with or without tools.

        Raises:
            UsageError: the model has none.
        """
        if not self.templates:
            raise UsageError(
                f"The model {self.model} has no chat template.",
                "It was not made for conversations.",
                "Use generate, or a model whose name says chat or instruct, or give a chat template.",
            )
        return self.templates.of(tools)

    def _check_characters(self, count: int, kind: str) -> None:
        """Refuse text that cannot fit before it is tokenized, which could take minutes."""
        most = self.context * self.tokenizer.longest
        if count > most:
            raise ContextFullError(
                f"The {kind} has {count:,} characters; the context holds at most {most:,}.",
                f"The context has {self.context} tokens. Nothing was cut.",
                f"Shorten the {kind}.",
            )


def _characters(messages: Iterable[Message]) -> int:
    """The characters of the messages' texts."""
    contents = [m.get("content") for m in messages if isinstance(m, Mapping)]
    return sum(len(c) for c in contents if isinstance(c, str))
