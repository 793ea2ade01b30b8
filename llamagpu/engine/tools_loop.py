"""``LLM.run``: a conversation in which the model's calls of Python functions are run, until it answers without one."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llamagpu.engine.arguments import items, whole_in
from llamagpu.engine.result import Result
from llamagpu.errors import RoundsError, UsageError, shown
from llamagpu.text import Message
from llamagpu.text.functions import call_function, check_arguments, function_schema
from llamagpu.text.tool_json import ToolCall

Function = Callable[..., Any]


@dataclass(frozen=True)
class RunResult(Result):
    """The last answer of ``LLM.run``.

    Attributes:
        messages: the whole conversation, in OpenAI's form: what was given, calls, their results, and this answer.
    """

    messages: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class Rounds:
    """The state of a run: the conversation so far, and the functions.

    Args:
        messages: the conversation to answer.
        functions: the tools.
        most: the most answers of the model.
        options: of ``LLM.chat``. A ``tool_choice`` that forces a call holds for the first answer.

    Raises:
        UsageError: a tool is no Python function, or has no schema, or ``most`` is out of its range.
    """

    def __init__(self, messages: Iterable[Message], functions: Sequence[Function], most: int, options: dict[str, Any]):
        self.messages: list[dict[str, Any]] = [dict(m) for m in items(messages, "a conversation")]
        self.most = whole_in("max_rounds", most, 1)
        self._functions: dict[str, Function] = {}
        self._schemas: dict[str, dict[str, Any]] = {}
        for function in items(functions, "a list of tools"):
            if not callable(function):
                what = f"{shown(function)} is no Python function."
                raise UsageError(what, "Its calls cannot be run.", "Use chat, and run its calls yourself.")
            schema = function_schema(function)
            name = schema["function"]["name"]
            self._functions[name], self._schemas[name] = function, schema
        self._options = {**options, "tools": list(functions)}

    @property
    def waits(self) -> str | None:
        """The name of a function that is a coroutine, if there is one."""
        return next((name for name, f in self._functions.items() if inspect.iscoroutinefunction(f)), None)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the next answer."""
        return self._options

    def answered(self, result: Result) -> tuple[ToolCall, ...]:
        """Take an answer; returns the calls to run."""
        self.messages.append(result.message)
        if self._options.get("tool_choice", "auto") != "none":
            self._options["tool_choice"] = "auto"
        return result.tool_calls

    def finished(self, result: Result) -> RunResult:
        """The result with the conversation."""
        fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
        return RunResult(**fields, messages=self.messages)

    def exhausted(self) -> RoundsError:
        """The error after the last round."""
        return RoundsError.after(self.most, self.messages)

    def called(self, call: ToolCall) -> Any:
        """The result of a call, or an awaitable; what cannot be called gives a ``Refused``."""
        if call.name not in self._functions:
            return Refused(f"There is no tool {call.name}. The tools: {', '.join(self._functions)}.")
        schema = self._schemas[call.name]["function"]["parameters"]
        wrong = check_arguments({**schema, "additionalProperties": False}, call.arguments)
        if wrong is not None:
            return Refused(f"The call of {call.name} is not valid: {wrong}")
        try:
            return call_function(self._functions[call.name], call.arguments)
        except Exception as e:
            return Refused.by(e)

    def told(self, call: ToolCall, value: Any) -> None:
        """Add the result of a call to the conversation."""
        content = value.why if isinstance(value, Refused) else _text(value)
        self.messages.append({"role": "tool", "tool_call_id": call.id, "name": call.name, "content": content})


@dataclass(frozen=True)
class Refused:
    """What the model is told of a call that failed."""

    why: str

    @classmethod
    def by(cls, error: Exception) -> Refused:
        """A call whose function raised."""
        return cls(f"Error: {type(error).__name__}: {error}")


def run(chat: Callable[..., Result], rounds: Rounds) -> RunResult:
    """Answer and call until an answer has no call.

    Raises:
        RoundsError: there were as many answers as are allowed.
        UsageError: a function is a coroutine.
    """
    if rounds.waits is not None:
        raise UsageError(f"{rounds.waits} is a coroutine function.", "Nothing awaits it here.", "Use AsyncLLM.run.")
    for _ in range(rounds.most):
        result = chat(rounds.messages, **rounds.options)
        calls = rounds.answered(result)
        if not calls:
            return rounds.finished(result)
        for call in calls:
            rounds.told(call, rounds.called(call))
    raise rounds.exhausted()


async def run_async(chat: Callable[..., Awaitable[Result]], rounds: Rounds) -> RunResult:
    """As ``run``; coroutine functions are awaited, others run on a thread."""
    for _ in range(rounds.most):
        result = await chat(rounds.messages, **rounds.options)
        calls = rounds.answered(result)
        if not calls:
            return rounds.finished(result)
        for call in calls:
            rounds.told(call, await _awaited(await asyncio.to_thread(rounds.called, call)))
    raise rounds.exhausted()


async def _awaited(value: Any) -> Any:
    if not inspect.isawaitable(value):
        return value
    try:
        return await value
    except Exception as e:
        return Refused.by(e)


def _text(value: Any) -> str:
    """A result as the model reads it: text as it is, other values as JSON."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError, RecursionError):
        text = str(value)
    return text.encode(errors="replace").decode()


def _plain(value: Any) -> Any:
    """What JSON has in place of a Python object."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    for method in ("model_dump", "tolist"):  # Pydantic models; numpy's arrays and numbers
        if hasattr(value, method):
            return getattr(value, method)()
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
