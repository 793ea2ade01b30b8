"""200 JSON schemas for tests of structured output, of the kinds that JSONSchemaBench collects from the field.

Each kind is a generator of schemas; ``SCHEMAS`` has them by name. Texts that satisfy a schema are short, so that a
model finishes most of them within some hundred tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

Schema = dict[str, Any]
WORDS = ("name", "title", "city", "color", "owner", "status", "street", "comment")
NUMBERS = ("age", "count", "price", "weight", "score", "year")
SHORT: Schema = {"type": "string", "maxLength": 12}
SMALL: Schema = {"type": "integer", "minimum": 0, "maximum": 99}
FLAG: Schema = {"type": "boolean"}


def record(properties: dict[str, Schema], required: list[str] | None = None, **more: Any) -> Schema:
    """A closed object; all properties are required unless a list says otherwise."""
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False, **more}


def flat() -> Iterator[Schema]:
    """Objects of plain values."""
    kinds = (SHORT, SMALL, FLAG, {"type": "null"}, {"type": "number", "minimum": 0, "maximum": 10})
    for i in range(20):
        names = [WORDS[(i + j) % len(WORDS)] for j in range(1 + i % 5)]
        yield record({name: kinds[(i + j) % len(kinds)] for j, name in enumerate(names)})


def nested() -> Iterator[Schema]:
    """Objects in objects."""
    for depth, width in itertools.product((1, 2, 3, 5, 8), (1, 2, 3)):
        schema = record({"id": SMALL})
        for level in range(depth):
            side = {WORDS[(level + j) % len(WORDS)]: SHORT if j % 2 else SMALL for j in range(width - 1)}
            schema = record({**side, f"level{level}": schema})
        yield schema


def arrays() -> Iterator[Schema]:
    """Arrays with bounds on their lengths."""
    items = (SMALL, SHORT, FLAG, record({"x": SMALL, "y": SMALL}), {"type": "array", "items": SMALL, "maxItems": 2})
    for item, (least, most) in itertools.product(items, ((0, 1), (1, 3), (2, 2))):
        yield {"type": "array", "items": item, "minItems": least, "maxItems": most}


def enums() -> Iterator[Schema]:
    """Enumerations of texts, numbers and mixed values, alone and in objects."""
    lists = (
        ["red", "green", "blue"],
        ["a", "ab", "abc"],
        ["", " ", "two words"],
        ["yes", "no", None],
        [1, 2, 3, 10, 100],
        [True, False, "maybe"],
        ["größe", "naïve", "日本"],
        ['quote"quote', "back\\slash", "line\nbreak"],
        [1.5, -2, 0.25],
        [{"a": 1}, {"a": 2}, [1, 2]],
    )
    for values in lists:
        yield {"enum": values}
        yield record({"status": {"enum": values}, "count": SMALL})


def constants() -> Iterator[Schema]:
    """Constants, also of objects and arrays."""
    for value in ("fixed", 42, -1.5, True, None, [1, "two", None], {"kind": "a", "more": [{}]}, ""):
        yield record({"kind": {"const": value}, "value": SMALL})
    yield {"const": "only this"}
    yield {"const": {"all": "fixed", "of": ["it"]}}


def unions() -> Iterator[Schema]:
    """anyOf, several types, and oneOf of kinds that exclude one another."""
    pairs = list(itertools.combinations((SHORT, SMALL, FLAG, {"type": "null"}, record({"a": SMALL})), 2))
    for first, second in pairs:
        yield {"anyOf": [first, second]}
    for kinds in (["string", "null"], ["integer", "boolean"], ["string", "integer", "null"]):
        yield record({"value": {"type": kinds, "maxLength": 8, "maximum": 50, "minimum": 0}})
    yield {"oneOf": [SHORT, SMALL]}
    yield record({"shape": {"anyOf": [record({"radius": SMALL}), record({"width": SMALL, "height": SMALL})]}})
    yield {"anyOf": [record({"type": {"const": k}, k: SMALL}) for k in ("circle", "square", "line")]}
    yield {"allOf": [record({"a": SMALL, "b": SHORT}, ["a"]), {"required": ["b"]}]}


def references() -> Iterator[Schema]:
    """$ref into $defs and definitions."""
    for where in ("$defs", "definitions"):
        ref = {"$ref": f"#/{where}/point"}
        defs = {where: {"point": record({"x": SMALL, "y": SMALL})}}
        yield {**record({"from": ref, "to": ref}), **defs}
        yield {"type": "array", "items": ref, "minItems": 1, "maxItems": 3, **defs}
        yield {"anyOf": [ref, {"type": "null"}], **defs}
        chain = {"a": {"$ref": f"#/{where}/b"}, "b": {"$ref": f"#/{where}/c"}, "c": SHORT}
        yield {"$ref": f"#/{where}/a", where: chain}
    yield {"$ref": "#/$defs/a~1b", "$defs": {"a/b": record({"tilde": SMALL})}}
    yield record({"id": SMALL, "copy": {"$ref": "#/properties/id"}})


def bounds() -> Iterator[Schema]:
    """Bounds of integers and numbers, and multiples."""
    for low, high in ((0, 9), (-5, 5), (10, 10), (95, 105), (1900, 2100), (-1000, -1)):
        yield {"type": "integer", "minimum": low, "maximum": high}
        yield {"type": "number", "minimum": low, "maximum": high}
    yield {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 4}
    yield {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
    yield {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 50}
    yield {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 1000}
    for name, (low, high) in zip(NUMBERS, ((0, 120), (1, 5), (0, 1), (40, 200), (0, 100), (1990, 2030)), strict=True):
        yield record({name: {"type": "integer" if high > 1 else "number", "minimum": low, "maximum": high}})


def lengths() -> Iterator[Schema]:
    """Lengths of texts."""
    for least, most in ((0, 0), (1, 1), (0, 3), (2, 5), (5, 5), (1, 20), (10, 15)):
        yield {"type": "string", "minLength": least, "maxLength": most}
    for least in (1, 4, 8):
        yield record({"comment": {"type": "string", "minLength": least, "maxLength": least + 10}, "count": SMALL})


PATTERNS = (
    r"^[a-z]{2,5}$",
    r"^[A-Z][a-z]{1,8}$",
    r"^\d{3}-\d{4}$",
    r"^(\(\d{3}\) )?\d{3}-\d{4}$",
    r"^#[0-9a-f]{6}$",
    r"^[a-z0-9._]{1,8}@[a-z]{2,6}\.(com|org)$",
    r"^v\d\.\d{1,2}(\.\d)?$",
    r"^(yes|no|maybe)$",
    r"^[^\s]{1,6}$",
    r"^$",
)


def patterns() -> Iterator[Schema]:
    """Texts by regular expressions."""
    for pattern in PATTERNS:
        yield {"type": "string", "pattern": pattern}
    for first, second in itertools.pairwise(PATTERNS[:6]):
        yield record({"code": {"type": "string", "pattern": first}, "other": {"type": "string", "pattern": second}})


def formats() -> Iterator[Schema]:
    """Texts by format."""
    for name in ("date", "time", "date-time", "duration", "ipv4", "uuid", "email", "ipv6"):
        yield {"type": "string", "format": name}
    yield record({"born": {"type": "string", "format": "date"}, "id": {"type": "string", "format": "uuid"}})


def optional() -> Iterator[Schema]:
    """Properties that may be absent, and objects with free keys."""
    for count, required in itertools.product((1, 3, 6), (0, 1, 2)):
        names = WORDS[:count]
        yield record(dict.fromkeys(names, SMALL), list(names[: min(required, count)]))
    yield {"type": "object", "properties": {}, "additionalProperties": False}
    yield {"type": "object", "properties": {"a": SMALL}, "required": ["a"], "additionalProperties": FLAG}
    yield {"type": "object", "patternProperties": {"^x[0-9]$": SMALL}, "additionalProperties": False}


def tuples() -> Iterator[Schema]:
    """Arrays with a schema for each place."""
    for count in (1, 2, 3):
        items = [SMALL, SHORT, FLAG][:count]
        yield {"type": "array", "prefixItems": items, "items": False, "minItems": count}
        yield {"type": "array", "prefixItems": items, "items": SMALL, "minItems": count, "maxItems": count + 2}
    yield record({"point": {"type": "array", "prefixItems": [SMALL, SMALL], "items": False, "minItems": 2}})


def recursive() -> Iterator[Schema]:
    """Recursion that may end at every level."""
    tree = record({"value": SMALL, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}})
    yield {"$ref": "#/$defs/tree", "$defs": {"tree": tree}}
    link = record({"value": SMALL, "next": {"anyOf": [{"$ref": "#/$defs/link"}, {"type": "null"}]}})
    yield {"$ref": "#/$defs/link", "$defs": {"link": link}}
    yield record({"name": SHORT, "parent": {"$ref": "#"}}, ["name"])
    term = {"anyOf": [SMALL, record({"op": {"enum": ["+", "*"]}, "left": {"$ref": "#/$defs/e"}, "right": SMALL})]}
    yield {"$ref": "#/$defs/e", "$defs": {"e": term}}
    yield {"$ref": "#/$defs/l", "$defs": {"l": {"type": "array", "items": {"$ref": "#/$defs/l"}, "maxItems": 2}}}


def calls() -> Iterator[Schema]:
    """Calls of functions: a name, and arguments by its schema."""
    functions: dict[str, Schema] = {
        "get_weather": record({"city": SHORT, "unit": {"enum": ["celsius", "fahrenheit"]}}, ["city"]),
        "send_mail": record({"to": {"type": "string", "format": "email"}, "subject": SHORT}),
        "add": record({"a": SMALL, "b": SMALL}),
        "search": record({"query": SHORT, "limit": {"type": "integer", "minimum": 1, "maximum": 20}}, ["query"]),
        "now": record({}),
        "book": record({"seats": {"type": "array", "items": SMALL, "minItems": 1, "maxItems": 3}, "window": FLAG}),
    }

    def call(name: str) -> Schema:
        return record({"name": {"const": name}, "arguments": functions[name]})

    yield from map(call, functions)
    for first, second in itertools.pairwise(functions):
        yield {"anyOf": [call(first), call(second)]}
    yield {"anyOf": [call(name) for name in functions]}
    yield {"type": "array", "items": {"anyOf": [call(n) for n in ("add", "now")]}, "minItems": 1, "maxItems": 2}


KINDS: tuple[Callable[[], Iterator[Schema]], ...] = (
    *(flat, nested, arrays, enums, constants, unions, references, bounds, lengths, patterns, formats, optional),
    *(tuples, recursive, calls),
)
SCHEMAS: dict[str, Schema] = {f"{kind.__name__}-{i}": s for kind in KINDS for i, s in enumerate(kind())}
