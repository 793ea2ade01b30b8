"""Chat templates: conversations become prompts, as transformers renders them.

The reference is ``apply_chat_template`` of transformers' tokenizers and ``transformers/utils/chat_template_utils.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes

from llamagpu.errors import UnsupportedModelError, UsageError, shown
from llamagpu.text.limits import MOST_CHARACTERS, TemplateStopped, limits
from llamagpu.text.marks import Marks, Rendered
from llamagpu.text.messages import ROLES, Message, conversation, dictionaries, plain, tools_of
from llamagpu.text.sandbox import environment

_OWN = ("messages", "tools", "documents", "add_generation_prompt")
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # as in transformers; its space shows whether the template trims the message
_MOST_SOURCE = 60_000  # characters; the largest templates have 30,000
_MOST_COMPARED = 20_000_000  # pairs of a special token and a text that the template names
_PROBE = "PROBE_OF_PARTS"
_USER = {"role": "user", "content": _PROBE}
_FUNCTION: dict[str, Any] = {"name": "probed_0", "description": "", "parameters": {"type": "object", "properties": {}}}
_TOOL: dict[str, Any] = {"type": "function", "function": _FUNCTION, **_FUNCTION}  # in both forms that templates read
_SPECIAL = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


@dataclass(frozen=True)
class Conversation:
    """Messages, and what else a chat template may be given. The names are transformers'.

    Args:
        messages: dictionaries with ``role`` and ``content``, in OpenAI's form.
        tools: JSON schemas of functions that the model may call.
        documents: dictionaries with ``title`` and ``text``, for templates that take them.
        add_generation_prompt: end where the answer begins.
        continue_final_message: end within the last message, which the model continues.
        arguments: further variables of the template, such as ``enable_thinking``.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    arguments: Mapping[str, Any] | None = None


class ChatTemplate:
    """A model's chat template.

    Args:
        source: Jinja.
        special: the special tokens that it may name, such as ``bos_token``.
        reserved: the texts of all special tokens. Only the template may write them.

    Attributes:
        source: the template.
        variables, named, attributes: the variables that it reads, the strings that it names, and the attributes.

    Raises:
        UnsupportedModelError: the template is not valid.
    """

    def __init__(self, source: str, special: Mapping[str, str], reserved: Collection[str] = ()):
        self.source, self._special = source, dict(special)
        made = environment()
        if len(source) > _MOST_SOURCE:
            raise _invalid(f"It has {len(source):,} characters; {_MOST_SOURCE:,} are allowed.")
        try:
            tree = made.parse(source)
            self.variables = _variables(tree)
            constants = (n.value for n in tree.find_all(jinja2.nodes.Const))
            self.named = frozenset(value for value in constants if isinstance(value, str))
            self.attributes = frozenset(n.attr for n in tree.find_all(jinja2.nodes.Getattr))
            self._template = made.from_string(tree)
        except Exception as e:  # Python's compiler refuses some templates too, such as a break outside of a loop
            raise _invalid(str(e)) from None
        self._names_content = "content" in source
        if len(self.named) * len(reserved) > _MOST_COMPARED:
            raise _invalid(f"It names {len(self.named):,} texts, and there are {len(reserved):,} special tokens.")
        self._marks = Marks(reserved, {*self.named, *ROLES, *self.attributes})

    def render(self, given: Conversation) -> Rendered:
        """The prompt for a conversation, up to the beginning of the answer, with marks on the conversation's own text.

        Raises:
            UsageError: the conversation is not valid, or the template refuses it, fails on it, or exceeds a limit.
        """
        values = self._values(given)
        if not given.continue_final_message:
            return self._marks.render(self._text, values)
        if given.add_generation_prompt:
            raise UsageError("continue_final_message and add_generation_prompt exclude one another.")
        return self._marks.render(self._open_ended, values)

    def _values(self, given: Conversation) -> dict[str, Any]:
        """The template's variables."""
        arguments: dict[str, Any] = plain(dict(given.arguments or {}), "arguments of the template")
        for name in arguments:
            if name in _OWN or not name.isidentifier():
                raise UsageError(f"{shown(name)} is not an argument of chat templates.", "It is a name of their own.")
        messages = conversation(given.messages, self.named)
        if any(isinstance(m.get("content"), list) for m in messages) and not self._takes_parts:
            messages = [_joined(m) for m in messages]
        return arguments | {
            "messages": messages,
            "tools": tools_of(given.tools),
            "documents": dictionaries(given.documents, "documents"),
            "add_generation_prompt": bool(given.add_generation_prompt),
        }

    def _text(self, values: Mapping[str, Any]) -> str:
        pieces, size = [], 0
        try:
            with limits():
                for piece in self._template.generate({**self._special, **values}):
                    size += len(piece)
                    if size > MOST_CHARACTERS:
                        raise TemplateStopped(f"it makes more than {MOST_CHARACTERS:,} characters")
                    pieces.append(piece)
        except TemplateStopped as e:
            raise UsageError("The model's chat template was stopped.", f"{e}.", "Use another model.") from None
        except jinja2.exceptions.SecurityError as e:
            why = f"It is not allowed: {str(e).strip()}"
            raise UsageError("The model's chat template was stopped.", why, "Use another model.") from None
        except Exception as e:  # a template can raise any exception
            raise UsageError("The chat template does not take this conversation.", f"{type(e).__name__}: {e}") from None
        return "".join(pieces)

    def _open_ended(self, values: Mapping[str, Any]) -> str:
        """The text up to the end of the last message's content."""
        last = dict(values["messages"][-1])
        content = last.get("content")
        if not self._names_content or content is None:
            raise UsageError("The last message cannot be continued.", "It has no content, or the template reads none.")
        if isinstance(content, list):
            end = content[-1]["text"] if content else ""
            last["content"] = [*content[:-1], {"type": "text", "text": end + _TAG}]
        else:
            end, last["content"] = content, content + _TAG
        text = self._text({**values, "messages": [*values["messages"][:-1], last]})
        at = text.rfind(_TAG.strip())
        if at < 0 or end.strip() not in text:
            raise UsageError("The last message cannot be continued.", "The chat template changes or drops its text.")
        return text[:at] if text[at:].startswith(_TAG) else text[:at].rstrip()

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template tells the model of the tools that it is given."""
        text = self._probed([_USER], [_TOOL])  # empty if it needs arguments
        return "tools" in self.variables and (not text or _TOOL["name"] in text)

    @cached_property
    def takes_several_calls(self) -> bool:
        """Whether the template shows an answer with more than one call of a tool."""
        names = ["probed_1", "probed_2"]
        calls = [{"id": f"0{n}", "type": "function", "function": {"name": n, "arguments": {}}} for n in names]
        text = self._probed([_USER, {"role": "assistant", "content": "", "tool_calls": calls}], [_TOOL])
        return all(name in text for name in names)

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template reads lists of parts; if not, they are joined for it."""
        text = self._probed([{"role": "user", "content": [{"type": "text", "text": _PROBE}]}])
        return _PROBE in text and not any(key in text for key in ("'text'", '"text"'))

    def _probed(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        """The text of a conversation that shows what the template can do; empty if it refuses it."""
        try:
            return self._text({"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": False})
        except UsageError:
            return ""


def _variables(tree: jinja2.nodes.Template) -> frozenset[str]:
    """The variables that a template reads: ``jinja2.meta.find_undeclared_variables``, but without its optimizer, which
    computes constants."""
    generator = jinja2.meta.TrackingCodeGenerator(tree.environment)  # type: ignore[arg-type]
    generator.optimizer = None
    generator.visit(tree)
    return frozenset(generator.undeclared_identifiers)


def _invalid(why: str) -> UnsupportedModelError:
    return UnsupportedModelError("The model's chat template is not valid.", why)


def _joined(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its parts as one text, a line for each."""
    content = message.get("content")
    return message | {"content": "\n".join(p["text"] for p in content)} if isinstance(content, list) else message


class ChatTemplates:
    """A model's chat templates by name: ``default``, and perhaps ``tool_use``, which is taken where tools are given.

    Args:
        sources: Jinja by name.
        chosen: a name, or Jinja, which replaces the model's own.
        special, reserved: see ``ChatTemplate``.
    """

    def __init__(
        self, sources: Mapping[str, str], chosen: str | None, special: Mapping[str, str], reserved: Collection[str]
    ):
        if chosen is not None:
            sources = {"default": sources.get(chosen, chosen)}
        self._sources, self._special, self._reserved = dict(sources), special, reserved
        self._compiled: dict[str, ChatTemplate] = {}

    def __bool__(self) -> bool:
        return bool(self._sources)

    def of(self, tools: Any = None) -> ChatTemplate:
        """The template for a conversation with or without tools, compiled when it is first needed.

        Raises:
            UnsupportedModelError: it is not valid, or none is the default.
        """
        name = "tool_use" if tools and "tool_use" in self._sources else "default"
        if name not in self._sources:
            raise UnsupportedModelError(
                "No chat template of the model is the default.", f"Their names: {', '.join(sorted(self._sources))}."
            )
        if name not in self._compiled:
            self._compiled[name] = ChatTemplate(self._sources[name], self._special, self._reserved)
        return self._compiled[name]


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens of tokenizer_config.json that templates may name."""
    found = {key: token_text(config.get(key)) for key in _SPECIAL}
    return {key: text for key, text in found.items() if text is not None}


def token_text(token: Any) -> str | None:
    """The text of a token in tokenizer_config.json: a string, or an object with its ``content``."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None
