"""Chat templates: jinja2 in an immutable sandbox, with limits on time and size.

A template comes with the model and is not trusted. The sandbox refuses attributes and calls that lead out of it; the
limits end templates that run or grow without end.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.sandbox

from llamagpu.errors import UnsupportedModelError, UsageError

Message = Mapping[str, Any]
MOST_SECONDS = 2.0
MOST_CHARACTERS = 4_000_000
_MOST_REPEAT = 100_000


class TemplateStopped(Exception):
    """A template exceeded a limit."""


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox of transformers' templates. It refuses products and powers that could make huge values at once."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        huge = any(isinstance(v, int) and abs(v) > _MOST_REPEAT for v in (left, right))
        if operator == "**" or (huge and not all(isinstance(v, (int, float)) for v in (left, right))):
            raise TemplateStopped(f"it computes {operator} of large values")
        return super().call_binop(context, operator, left, right)


@contextmanager
def _limits() -> Iterator[None]:
    """Stop the code inside when it exceeds the time limit, or when a string or list exceeds the size limit."""
    deadline, before = time.monotonic() + MOST_SECONDS, sys.gettrace()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > deadline:
            raise TemplateStopped(f"it ran for more than {MOST_SECONDS:g} seconds")
        for value in frame.f_locals.values():
            if isinstance(value, (str, list)) and len(value) > MOST_CHARACTERS:
                raise TemplateStopped(f"it makes more than {MOST_CHARACTERS:,} characters")
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


class ChatTemplate:
    """A model's chat template.

    Raises:
        UnsupportedModelError: the template is not valid.
    """

    def __init__(self, source: str, special: Mapping[str, str]):
        self.source, self._special = source, dict(special)
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as e:
            raise UnsupportedModelError("The model's chat template is not valid.", str(e)) from None

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = True) -> str:
        """The prompt for a conversation, up to the beginning of the answer; or, without the generation prompt, to the
        end of the last message.

        Raises:
            UsageError: the template refuses the conversation, fails on it, or exceeds a limit.
        """
        pieces, size = [], 0
        try:
            with _limits():
                for piece in self._template.generate(
                    messages=[dict(m) for m in messages],
                    add_generation_prompt=generation_prompt,
                    **self._special,
                ):
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


def _to_json(value: Any, indent: int | None = None) -> str:
    """JSON as transformers writes it: not escaped for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens of tokenizer_config.json that templates may name."""
    out = {}
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = config.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            out[key] = token
    return out
