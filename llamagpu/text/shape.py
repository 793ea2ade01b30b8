"""What an output must look like: the options of structured output, checked and turned into a grammar.

The grammars are llguidance's (https://github.com/guidance-ai/llguidance): the same text that its ``LLMatcher`` takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llamagpu.errors import UsageError, shown
from llamagpu.text.grammar import ascii_classes, check_regex, library, objection
from llamagpu.text.hints import schema_of
from llamagpu.text.json_schema import JSON_OBJECT, check_end, check_schema, literals

SHAPES = ("json_schema", "json_object", "regex", "choices", "grammar")
_MOST_TEXT = 200_000  # characters of a schema, regex or grammar
_MOST_CHOICES = 10_000
# What a schema is given, so that its JSON has the spaces of ``json.dumps``.
SPACING = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
_ATTRIBUTES = re.compile(r"^\s*\w+\s*\[([^\]\n]*)\]\s*:", re.M)  # of the rules of a grammar
_VERBOSE = re.compile(r"(?<!\\)\(\?[a-zA-Z]*x")
_REFUSED = ("max_tokens", "stop", "temperature")


@dataclass(frozen=True)
class Shape:
    """What an output must look like; picklable.

    Attributes:
        name: the option that asked for it, for errors.
        grammar: the text of llguidance's grammar.
        needs: texts whose characters the model's vocabulary must spell.
    """

    name: str
    grammar: str
    needs: tuple[str, ...] = ()


def shape_of(
    json_schema: Any = None, json_object: Any = False, regex: Any = None, choices: Any = None, grammar: Any = None
) -> Shape | None:
    """The shape that the options ask for, or None.

    Args:
        json_schema: a JSON schema as a dictionary or text, a Pydantic model, or a type with hints (a dataclass).
        json_object: any JSON object.
        regex: a regular expression in the syntax of Rust's ``regex``, which the whole output matches. ``\\d``, ``\\w``
            and ``\\s`` match ASCII only.
        choices: strings, of which the output is one.
        grammar: a context-free grammar in llguidance's variant of Lark.

    Raises:
        UsageError: more than one is given, or one is not of its type, too large or impossible.
    """
    if not isinstance(json_object, bool):
        raise UsageError(f"json_object is {shown(json_object)}.", "It must be true or false.")
    values: tuple[Any, ...] = (json_schema, json_object or None, regex, choices, grammar)
    given = {name: value for name, value in zip(SHAPES, values, strict=True) if value is not None}
    if not given:
        return None
    if len(given) > 1:
        why = "An output can have one shape only."
        raise UsageError(f"{' and '.join(given)} exclude one another.", why, "Give one of them.")
    ((name, value),) = given.items()
    return _MAKERS[name](value)


def lark_shape(name: str, text: str, needs: tuple[str, ...]) -> Shape:
    """The shape of a grammar that was made here for the option ``name``. It may name special tokens, which cannot be
    checked before there is a vocabulary.

    Raises:
        UsageError: it is too large.
    """
    return Shape(name, _lark(_bounded(name, text)), needs)


def _json_schema(given: Any) -> Shape:
    return _of_schema(_bounded("json_schema", json.dumps(schema_dict(given), ensure_ascii=False)))


@lru_cache(64)
def _of_schema(text: str) -> Shape:
    schema = json.loads(text)
    check_schema(schema)
    grammar = _valid("json_schema", _schema_grammar(schema))
    check_end(schema)
    return Shape("json_schema", grammar, literals(schema))


def schema_dict(given: Any) -> dict[str, Any]:
    """A JSON schema as a dictionary, of what ``json_schema`` may be.

    Raises:
        UsageError: it is none.
    """
    if isinstance(given, Mapping):
        try:
            plain: dict[str, Any] = json.loads(json.dumps(given))
        except (TypeError, ValueError, RecursionError) as e:
            raise UsageError("json_schema is not JSON.", str(e)) from None
        return plain
    if not isinstance(given, str):
        return schema_of(given)
    text = _bounded("json_schema", given)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UsageError("json_schema is not JSON.", str(e)) from None
    if not isinstance(schema, dict):
        raise UsageError(f"json_schema is {shown(schema)}.", "It must be a JSON object.")
    return schema


def _schema_grammar(schema: Mapping[str, Any]) -> str:
    """A grammar of JSON text as ``json.dumps`` writes it: ``", "`` and ``": "`` between, and no other spaces.

    Free whitespace lets small models write spaces without end, and makes nothing certain in advance.
    """
    return json.dumps({"grammars": [{"json_schema": {**schema, **SPACING}}]}, ensure_ascii=False)


def _json_object(_: Any) -> Shape:
    return Shape("json_object", _schema_grammar(JSON_OBJECT), literals(JSON_OBJECT))


def _regex(given: Any) -> Shape:
    pattern = _bounded("regex", _text("regex", given))
    check_regex("regex", pattern)
    _check_written(pattern)
    grammar = library().LLMatcher.grammar_from_regex
    try:
        return Shape("regex", _valid("regex", grammar(ascii_classes(pattern))))
    except UsageError:
        _valid("regex", grammar(pattern))  # its error shows what was given
        raise


def _check_written(pattern: str) -> None:
    """Refuse what the library would write into its grammar as something else."""
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise UsageError("regex ends with a backslash.", "It escapes nothing.", "For a backslash, write two.")
    if "\n" in pattern and _VERBOSE.search(pattern):
        why = "Its line breaks would be matched, and its comments would not end."
        raise UsageError("regex is verbose, (?x), and has several lines.", why, "Write it in one line.")


def _choices(given: Any) -> Shape:
    allowed = f"1 to {_MOST_CHOICES} strings, none of them empty"
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UsageError(f"choices are {shown(given)}.", f"They must be {allowed}.")
    if len(given) > _MOST_CHOICES:
        raise UsageError(f"There are {len(given)} choices.", f"They must be {allowed}.")
    texts = [_text("a choice", c) for c in given]
    if not texts or not all(texts):
        raise UsageError(f"choices are {shown(given)}.", f"They must be {allowed}.")
    _bounded("choices", "".join(texts))
    pattern = "|".join(map(_escaped, dict.fromkeys(texts)))  # faster than alternatives of a grammar
    return Shape("choices", library().LLMatcher.grammar_from_regex(f"({pattern})"), tuple(texts))


def _escaped(text: str) -> str:
    """A regular expression of this text alone."""
    return "".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


def _grammar(given: Any) -> Shape:
    text = _bounded("grammar", _text("grammar", given))
    for attributes in _ATTRIBUTES.findall(text):
        for name in _REFUSED:
            if re.search(rf"\b{name}\b", attributes):
                why = "It would not hold for the output: steps are taken back, and one temperature is for all tokens."
                raise UsageError(f"grammar has the attribute {name}.", why, "Leave it out.")
    return Shape("grammar", _valid("grammar", _lark(text)))


def _lark(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]}, ensure_ascii=False)


@lru_cache(64)
def _valid(name: str, grammar: str) -> str:
    """The grammar, if the library can use it and says nothing against it."""
    message = objection(grammar)
    if message:
        raise UsageError(f"{name} cannot be used.", message)
    return grammar


def _text(name: str, given: Any) -> str:
    if not isinstance(given, str):
        raise UsageError(f"{name} is {shown(given)}.", "It must be a string.")
    try:
        given.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name} is {shown(given)}.", "It must be a string of whole Unicode characters.") from None
    return given


def _bounded(name: str, text: str) -> str:
    if len(text) > _MOST_TEXT:
        why = f"The limit is {_MOST_TEXT} characters: larger grammars take minutes to compile."
        raise UsageError(f"{name} has {len(text)} characters.", why, "Make it smaller.")
    return text


_MAKERS = {
    "json_schema": _json_schema,
    "json_object": _json_object,
    "regex": _regex,
    "choices": _choices,
    "grammar": _grammar,
}
