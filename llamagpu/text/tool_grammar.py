"""The grammar of answers that must call a tool: what ``CallReader`` reads, written as the chat template shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llamagpu.errors import UsageError
from llamagpu.text.json_schema import check_end, check_schema, literals
from llamagpu.text.shape import SPACING, Shape, lark_shape
from llamagpu.text.tool_forms import Form

_MOST_CALLS = 16  # of an answer, so that it ends


def call_shape(form: Form, tools: Sequence[Mapping[str, Any]], special: Mapping[str, int], *, several: bool) -> Shape:
    """What an answer looks like that calls one of these tools, or several in a row.

    Args:
        tools: in OpenAI's form.
        special: ids of special tokens by their texts: where the form has such a text, it is this token.

    Raises:
        UsageError: the parameters of a tool cannot become a grammar.
    """
    opening, written = form.openings[0], _Writer(special)
    listed = opening.body == "list"
    more = f" ({written(', ' if listed else form.between)} call){{0,{_MOST_CALLS - 1}}}" if several else ""
    begin = opening.begin + opening.inner + ("[" if listed else "")
    end = ("]" if listed else "") + opening.inner + opening.end
    rules = ["start: " + (f"{written(begin)} call{more} {written(end)}" if listed else f"call{more}")]
    rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
    needs = [begin, end, form.between]
    for i, tool in enumerate(tools):
        name, schema = tool["function"]["name"], _schema(tool["function"])
        head = f'{{"name": {json.dumps(name)}, "{form.key}": '
        head, tail = (f"{name}{opening.separator}", "") if opening.body == "named" else (head, "}")
        head, tail = (head, tail) if listed else (begin + head, tail + end)
        rules.append(f"call_{i}: {written(head)} arguments_{i} {written(tail)}")
        rules.append(f"arguments_{i}: %json {json.dumps(schema | SPACING, ensure_ascii=False)}")
        needs += [head, tail, *literals(schema)]
    plain = (re.sub("|".join(map(re.escape, special)), "", text) if special else text for text in needs)
    return lark_shape("tool_choice", "\n".join(rules), tuple(sorted({*plain})))


def _schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments: an object, with no further keys unless the schema speaks of them."""
    given = {"type": "object", **function.get("parameters", {})}
    if not given.keys() & {"patternProperties", "anyOf", "oneOf", "allOf", "$ref"}:
        given = {"properties": {}, "additionalProperties": False} | given
    try:
        check_schema(given)
        check_end(given)
    except UsageError as e:
        what = f"The parameters of {function['name']} cannot become a grammar, which tool_choice needs."
        raise UsageError(what, f"{e.what} {e.why}".replace("json_schema", "The schema"), e.hint) from None
    return given


class _Writer:
    """Writes texts as llguidance's Lark has them: special tokens by their ids."""

    def __init__(self, special: Mapping[str, int]):
        self._special = special
        self._split = re.compile(f"({'|'.join(map(re.escape, special))})") if special else None

    def __call__(self, text: str) -> str:
        parts = self._split.split(text) if self._split else [text]
        return " ".join(self._part(p) for p in parts if p) or '""'

    def _part(self, text: str) -> str:
        return f"<[{self._special[text]}]>" if text in self._special else json.dumps(text, ensure_ascii=False)
