"""The tools of a conversation: which calls the model may write, in which form, and whether it must."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamagpu.errors import UsageError, shown
from llamagpu.text.messages import tools_of
from llamagpu.text.shape import Shape
from llamagpu.text.template import ChatTemplate
from llamagpu.text.tokenizer import Tokenizer
from llamagpu.text.tool_calls import CallReader
from llamagpu.text.tool_forms import FORMS, Form, form_of
from llamagpu.text.tool_grammar import call_shape

CHOICES = ("auto", "none", "required")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # OpenAI's names, and the dots of some servers' tools
_HINT = "Give a template that does: LLM(..., chat_template=…)."


@dataclass(frozen=True)
class ToolUse:
    """How a conversation uses its tools.

    Attributes:
        tools: JSON schemas as they were given, for the chat template.
        form: how calls are written.
        keep: ids of special tokens that belong to calls, so that decoding may not drop them.
        most: the most calls of an answer; None is any number.
        shape: what the whole answer must look like; None is anything.
    """

    tools: list[dict[str, Any]]
    form: Form
    keep: frozenset[int]
    most: int | None
    shape: Shape | None

    def reader(self) -> CallReader:
        """What divides an answer into text and calls."""
        return CallReader(self.form, self.most)


def tool_use(
    template: ChatTemplate | None, tokenizer: Tokenizer, tools: Any, choice: Any = "auto", parallel: Any = True
) -> ToolUse | None:
    """How an answer may use tools; None if there are none, or none may be called.

    Args:
        template: the chat template for conversations with tools; needed only where there are some.
        tools: JSON schemas of functions, or Python functions.
        choice: ``auto`` leaves it to the model. With ``none`` it is not told of the tools. ``required`` makes it call
            at least one tool, and a tool's name, or ``{"type": "function", "function": {"name": …}}``, that one.
        parallel: whether an answer may have several calls. Templates that cannot show several have one anyway.

    Raises:
        UsageError: the template knows no tools or shows no known form of calls, a tool or its name is not valid, the
            choice names none of them, or the schema of a tool that must be called cannot become a grammar.
    """
    named = _named(choice)
    if not isinstance(parallel, bool):
        raise UsageError(f"parallel_tool_calls is {shown(parallel)}.", "It must be true or false.")
    given = tools_of(tools) or []
    offered = _checked(given)
    if named not in ("auto", "none") and named not in (*([CHOICES[2]] if offered else []), *offered):
        why = f"It must be one of {', '.join(CHOICES)}, or a tool: {', '.join(offered)}."
        raise UsageError(f"tool_choice is {shown(named)}.", why if offered else "There are no tools.")
    if template is None or not offered or named == "none":
        return None
    form = _form(template)
    special = {text: id for text in sorted(form.marks) if (id := tokenizer.special_id(text)) is not None}
    one = not parallel or not template.takes_several_calls or named not in CHOICES
    shape = None
    if named != "auto":
        called = list(offered.values()) if named == "required" else [offered[named]]
        shape = call_shape(form, called, special, several=not one)
    return ToolUse(given, form, frozenset(special.values()), 1 if one else None, shape)


def _named(choice: Any) -> str:
    """``auto``, ``none``, ``required`` or the name of a tool."""
    if choice is None:
        return "auto"
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        function = choice.get("function")
        choice = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(choice, str):
        allowed = 'auto, none, required, a name, or {"type": "function", "function": {"name": …}}'
        raise UsageError(f"tool_choice is {shown(choice)}.", f"It must be {allowed}.")
    return choice


def _checked(tools: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Tools in OpenAI's form, by name."""
    out: dict[str, dict[str, Any]] = {}
    for tool in tools:
        function = tool.get("function", tool)
        name = function["name"]
        if not _NAME.fullmatch(name):
            raise UsageError(f"{shown(name)} is no name of a tool.", "It has 1 to 64 letters, digits, _, - and dots.")
        if name in out or name in CHOICES:
            why = "It is a value of tool_choice." if name in CHOICES else "A call could mean either."
            raise UsageError(
                f"A tool cannot have the name {name}." if name in CHOICES else f"Two tools are {name}.", why
            )
        if not isinstance(function.get("parameters", {}), dict):
            raise UsageError(
                f"The parameters of {name} are {shown(function['parameters'])}.", "They are a JSON schema."
            )
        out[name] = {"type": "function", "function": function}
    return out


def _form(template: ChatTemplate) -> Form:
    if not template.takes_tools:
        raise UsageError("The model's chat template does not know tools.", "It leaves them out of the prompt.", _HINT)
    form = form_of(template.source)
    if form is None:
        known = ", ".join(f.name for f in FORMS)
        what = "The model's chat template shows tool calls in an unknown form."
        raise UsageError(
            what, f"The known forms: {known}.", "Use generate with apply_chat_template, and read its text."
        )
    return form
