"""Conversations as OpenAI's clients send them, checked and brought into the form that chat templates read."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from llamagpu.errors import UsageError, shown
from llamagpu.text.functions import function_schema

Message = Mapping[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
_REASONING = ("reasoning_content", "thinking", "reasoning")  # the first is the name that most templates read


def conversation(messages: Sequence[Any], named: Collection[str] = ()) -> list[dict[str, Any]]:
    """Copies of messages, made of plain values. Absent (null) fields are dropped, as transformers does.

    Arguments of tool calls become objects if they are JSON text. The role ``developer`` becomes ``system`` unless the
    template names it.

    Args:
        named: the strings that the template names; its own roles are among them.

    Raises:
        UsageError: a message has no content, an unknown role, or a part that is not text.
    """
    if not messages:
        raise UsageError("The conversation is empty.", "There is nothing to answer.")
    return [_message(m, named) for m in messages]


def dictionaries(given: Any, kind: str) -> list[dict[str, Any]] | None:
    """Copies of tools or documents.

    Raises:
        UsageError: they are not a list of JSON objects.
    """
    if given is None:
        return None
    if not isinstance(given, (list, tuple)) or not all(isinstance(g, Mapping) for g in given):
        raise UsageError(f"{shown(given)} is not a list of {kind}.", f"The {kind} are JSON objects, as dictionaries.")
    return [plain(g, kind) for g in given]


def tools_of(given: Any) -> list[dict[str, Any]] | None:
    """Copies of tools: JSON schemas with a function's name, in OpenAI's form or bare, also of Python functions. An
    empty list is none.

    Raises:
        UsageError: a tool has no name, or a function has no schema.
    """
    if callable(given):
        raise UsageError(f"{shown(given)} is not a list of tools.", "It is one function.", "Put it into a list.")
    if isinstance(given, (list, tuple)):
        given = [function_schema(g) if callable(g) else g for g in given]
    tools = dictionaries(given, "tools")
    for tool in tools or ():
        function = tool.get("function", tool)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UsageError(
                f"{shown(tool)} is not a tool.",
                "A tool is a dictionary such as {'type': 'function', 'function': {'name': …, 'parameters': …}}.",
            )
    return tools or None


def plain(value: Any, kind: str) -> Any:
    """A copy of a JSON value. Subclasses become the types of JSON.

    Raises:
        UsageError: there is something in it that JSON does not have, or it is nested too deeply.
    """
    try:
        return _plain(value, kind)
    except RecursionError:
        raise UsageError(f"The {kind} are nested too deeply.", "They must be JSON values.") from None


def _plain(value: Any, kind: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {str(k): _plain(v, kind) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, kind) for v in value]
    raise UsageError(
        f"{shown(value)} is in the {kind}.", "They hold text, numbers, true, false, null, lists and objects."
    )


def _message(given: Any, named: Collection[str]) -> dict[str, Any]:
    if not isinstance(given, Mapping) or not isinstance(given.get("role"), str):
        raise _not_a_message(given, "A message has a role and a content, both text.")
    message = {k: v for k, v in plain(given, "messages").items() if v is not None}
    role = message["role"]
    if role not in ROLES and role not in named:
        raise UsageError(f"Unknown role {shown(role)}.", f"Roles are {', '.join(ROLES)}, and those the template names.")
    if role == "developer" and role not in named:
        message["role"] = "system"
    for key in ("name", "tool_call_id"):
        if not isinstance(message.get(key, ""), str):
            raise _not_a_message(given, f"Its {key} must be text.")
    reasoning = next((message[k] for k in _REASONING if k in message), None)
    if reasoning is not None:  # the names that transformers fills
        message = {"thinking": reasoning} | message | {"reasoning_content": reasoning}
    if not message.get("tool_calls", True):
        del message["tool_calls"]
    if "tool_calls" in message:
        message["tool_calls"] = _tool_calls(message["tool_calls"], given)
    elif "content" not in message and reasoning is None:
        raise _not_a_message(given, "A message has a role and a content, both text.")
    _check_content(message.get("content", ""), given)
    return message


def _check_content(content: Any, given: Any) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise _not_a_message(given, "Its content must be text, or a list of parts.")
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise UsageError(f"{shown(part)} is not a part of a message.", 'Parts are {"type": "text", "text": …}.')
        if kind != "text":
            raise UsageError(
                f"The message has a part of type {shown(kind)}.",
                "The model reads only text.",
                "Send parts of type text.",
            )
        if not isinstance(part.get("text"), str):
            raise UsageError(f"{shown(part)} has no text.", 'Parts are {"type": "text", "text": …}.')


def _tool_calls(calls: Any, given: Any) -> list[Any]:
    if not isinstance(calls, list):
        raise _not_a_message(given, "Its tool_calls must be a list.")
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UsageError(
                f"{shown(call)} is not a tool call.",
                'A tool call is {"type": "function", "function": {"name": …, "arguments": …}}.',
            )
        if isinstance(function.get("arguments"), str):
            function["arguments"] = _arguments(function["arguments"])
        if not isinstance(function.get("arguments", {}), dict):
            raise UsageError(
                f"{shown(function['arguments'])} are not the arguments of a tool call.", "They are an object."
            )
    return calls


def _arguments(text: str) -> Any:
    """The arguments of a tool call, which OpenAI's clients send as JSON text and templates read as an object."""
    try:
        return json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as e:
        raise UsageError(f"The arguments {shown(text)} of a tool call are not JSON.", str(e)) from None


def _not_a_message(given: Any, why: str) -> UsageError:
    return UsageError(f"{shown(given)} is not a message.", why)
