"""JSON schemas as structured output takes them: checks before a grammar is made of one.

llguidance refuses most keywords that it does not implement; here is what it would pass over in silence: keywords that
nobody knows, and schemas that no finite text satisfies.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from llamagpu.errors import UsageError, shown
from llamagpu.text.grammar import check_regex

JSON_OBJECT: dict[str, Any] = {"type": "object"}
_SCHEMAS = ("items", "additionalItems", "additionalProperties")  # keywords whose value is a schema
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_VALUES = {
    *("type", "const", "enum", "$ref", "format", "pattern", "minLength", "maxLength", "minItems", "maxItems"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("required", "minProperties", "maxProperties"),
}
_NOTES = {  # they say nothing about which texts are valid
    *("$schema", "$id", "id", "$anchor", "$comment", "$vocabulary", "title", "description", "default"),
    *("example", "examples", "deprecated", "readOnly", "writeOnly"),
}
_KNOWN = {*_SCHEMAS, *_LISTS, *_MAPS, *_VALUES, *_NOTES}
_SPELLED = {
    "object": '{":, }',
    "array": "[, ]",
    "string": '"',
    "integer": "-0123456789",
    "number": "-.0123456789",
    "boolean": "true false",
    "null": "null",
}
_DEEPEST = 64
_MOST_MULTIPLE = 1000
_MOST_SCHEMAS = 5000


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse what cannot become a grammar.

    Raises:
        UsageError: an unknown or unsupported keyword, or too many or too deeply nested schemas.
    """
    for count, (where, part) in enumerate(_walk(schema, "#", 0)):
        if count >= _MOST_SCHEMAS:
            raise UsageError("json_schema is too large.", f"It has over {_MOST_SCHEMAS} schemas within it.")
        unknown = sorted(part.keys() - _KNOWN)
        if unknown:
            raise UsageError(
                f"json_schema has the keyword {shown(unknown[0])} at {where}.",
                "It is unknown or not supported, and it would not hold for the output.",
                f"Leave it out. Supported: {', '.join(sorted(_KNOWN - _NOTES))}.",
            )

        if isinstance(part.get("pattern"), str):
            check_regex(f"The pattern at {where} of json_schema", part["pattern"])
        _check_multiple(where, part.get("multipleOf"))


def _check_multiple(where: str, value: Any) -> None:
    """Refuse a large multipleOf: the automaton that divides has as many states."""
    if isinstance(value, (int, float)) and value > _MOST_MULTIPLE:
        raise UsageError(f"multipleOf at {where} of json_schema is {shown(value)}.", f"The limit is {_MOST_MULTIPLE}.")


def check_end(schema: Mapping[str, Any]) -> None:
    """Refuse a schema that holds itself without end; it must be valid.

    Raises:
        UsageError: it does.
    """
    if not _ends(schema):
        raise UsageError("json_schema never ends.", "Every text that it allows holds itself again.")


def literals(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """Texts whose characters an output of the schema may need: JSON's own, and the schema's keys and constants."""
    found: set[str] = set()
    for _, part in _walk(schema, "#", 0):
        constants = [*part.get("enum", []), *([part["const"]] if "const" in part else [])]
        found |= {json.dumps(text, ensure_ascii=False) for text in (*part.get("properties", {}), *constants)}
        if not part.keys() & {"enum", "const", "$ref", "anyOf", "oneOf", "allOf"}:
            kinds = part.get("type", list(_SPELLED))
            found |= {_SPELLED[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)}
    return tuple(sorted(found))


def _walk(schema: Any, where: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A schema and all schemas within it, with their places."""
    if not isinstance(schema, Mapping):
        return  # true, false, or what the library refuses
    if depth > _DEEPEST:
        raise UsageError("json_schema is too deeply nested.", f"The limit is {_DEEPEST} levels.")
    yield where, schema
    for key, value in schema.items():
        if key in _SCHEMAS:
            yield from _walk(value, f"{where}/{key}", depth + 1)
        if key in _LISTS and isinstance(value, list):
            for i, part in enumerate(value):
                yield from _walk(part, f"{where}/{key}/{i}", depth + 1)
        if key in _MAPS and isinstance(value, Mapping):
            for name, part in value.items():
                yield from _walk(part, f"{where}/{key}/{name}", depth + 1)


def _ends(root: Mapping[str, Any]) -> bool:
    """Whether a finite text satisfies the schema: the least fixed point over its references."""
    finite: set[str] = set()
    references = {part["$ref"] for _, part in _walk(root, "#", 0) if isinstance(part.get("$ref"), str)}
    while True:
        more = {r for r in references - finite if _finite(_target(root, r), finite)}
        if not more:
            return _finite(root, finite)
        finite |= more


def _finite(schema: Any, finite: set[str]) -> bool:
    """Whether a finite text satisfies a schema, if references to ``finite`` ones have one."""
    if not isinstance(schema, Mapping):
        return True
    if "$ref" in schema and schema["$ref"] not in finite:
        return False
    for key in ("anyOf", "oneOf"):
        if key in schema and not any(_finite(s, finite) for s in schema[key]):
            return False
    if not all(_finite(s, finite) for s in schema.get("allOf", [])):
        return False
    kind = schema.get("type")
    properties = schema.get("properties", {})
    if kind in ("object", None) and not all(_finite(properties.get(k), finite) for k in schema.get("required", [])):
        return False
    least = schema.get("minItems", 0) if kind in ("array", None) else 0
    first = schema.get("prefixItems", [])
    needed = [*first[:least], *([schema.get("items")] if least > len(first) else [])]
    return all(_finite(s, finite) for s in needed)


def _target(root: Mapping[str, Any], reference: str) -> Any:
    """What a reference within the schema points to (RFC 6901); None if that is elsewhere, which the library judges."""
    if not reference.startswith("#"):
        return None
    at: Any = root
    for name in reference[1:].split("/")[1:]:
        name = name.replace("~1", "/").replace("~0", "~")
        if isinstance(at, list) and name.isdecimal() and int(name) < len(at):
            at = at[int(name)]
        elif isinstance(at, Mapping) and name in at:
            at = at[name]
        else:
            return None
    return at
