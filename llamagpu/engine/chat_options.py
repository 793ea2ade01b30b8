"""The keyword arguments of conversations: their names and defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from typing import Any, ParamSpec, TypeVar

from llamagpu.engine.params import DEFAULTS, GenerateOptions, taking

P = ParamSpec("P")
R = TypeVar("R")


class RunOptions(GenerateOptions, total=False):
    """Keyword arguments of ``LLM.run``: those of ``GenerateOptions``, and these.

    tool_choice: ``auto`` (the model decides), ``none`` (the model is not told of the tools), ``required`` (it calls at
        least one), or the name of the tool that it must call.
    parallel_tool_calls: whether an answer may have several calls; False ends it after the first.
    documents: dictionaries with ``title`` and ``text``, for templates that take documents.
    continue_final_message: continue the last message instead of answering it.
    chat_template_kwargs: further variables of the chat template, such as ``{"enable_thinking": False}``.
    """

    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool
    documents: List[Mapping[str, Any]] | None
    continue_final_message: bool
    chat_template_kwargs: Mapping[str, Any] | None


class ChatOptions(RunOptions, total=False):
    """Keyword arguments of ``LLM.chat`` and ``LLM.chat_stream``: those of ``RunOptions``, and these.

    tools: functions that the model may call: Python functions with type hints, or JSON schemas as dictionaries.
    """

    tools: List[Mapping[str, Any] | Callable[..., Any]] | None


TOOL_OPTIONS = ("tools", "tool_choice", "parallel_tool_calls")
TEMPLATE_OPTIONS = ("documents", "continue_final_message", "chat_template_kwargs")  # what a template reads besides
CHAT_DEFAULTS: dict[str, Any] = {
    "tools": None,
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "documents": None,
    "continue_final_message": False,
    "chat_template_kwargs": None,
}


def takes_chat_options(fn: Callable[P, R]) -> Callable[P, R]:
    """As ``takes_options``, for a function that takes ``ChatOptions``."""
    return taking(fn, ChatOptions, CHAT_DEFAULTS | DEFAULTS)


def takes_run_options(fn: Callable[P, R]) -> Callable[P, R]:
    """As ``takes_options``, for a function that takes ``RunOptions``."""
    return taking(fn, RunOptions, {k: v for k, v in CHAT_DEFAULTS.items() if k != "tools"} | DEFAULTS)
