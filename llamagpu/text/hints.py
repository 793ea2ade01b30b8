"""Type hints as JSON schemas: of dataclasses, Pydantic models, and functions' parameters.

Pydantic models bring their own schema (``model_json_schema``); the other types are those that JSON can spell.
"""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from llamagpu.errors import UsageError, shown

_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    None: {"type": "null"},
    type(None): {"type": "null"},
    Any: {},
    list: {"type": "array"},
    dict: {"type": "object"},
}
_KNOWN = (
    "str, int, float, bool, None, list, tuple, dict, Literal, Enum, Optional, Union, TypedDict, dataclasses, "
    "Pydantic models"
)


def schema_of(type: Any) -> dict[str, Any]:
    """The JSON schema of a type hint. Dataclasses stand under ``$defs``, so they may be recursive.

    Args:
        type: str, int, float, bool, None, Any, list, tuple, dict with text keys, Literal, Enum, Optional, Union,
            Annotated, TypedDict, a dataclass, a Pydantic model, or any nesting of these.

    Raises:
        UsageError: no JSON schema says what the type says, or a name in a hint is unknown.
    """
    defs: dict[str, Any] = {}
    schema = _schema(type, defs, {})
    return schema | {"$defs": defs} if defs else schema


def _schema(hint: Any, defs: dict[str, Any], names: dict[Any, str]) -> dict[str, Any]:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Annotated, Required, NotRequired):
        return _schema(args[0], defs, names)
    if _is_plain(hint):
        return dict(_PLAIN[hint])
    if hasattr(hint, "model_json_schema"):
        return _pydantic(hint, defs)
    if dataclasses.is_dataclass(hint) or is_typeddict(hint):
        return _record(hint, defs, names)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _values([member.value for member in hint], hint)
    if origin is Literal:
        return _values([a.value if isinstance(a, enum.Enum) else a for a in args], hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(a, defs, names) for a in args]}
    if origin in (list, Sequence):
        return {"type": "array", "items": _schema(args[0], defs, names)}
    if origin is tuple:
        return _tuple(args, defs, names)
    if origin in (dict, Mapping) and args[0] is str:
        return {"type": "object", "additionalProperties": _schema(args[1], defs, names)}
    raise UsageError(f"{shown(hint)} has no JSON schema.", f"These types have one: {_KNOWN}.")


def _is_plain(hint: Any) -> bool:
    try:
        return hint in _PLAIN
    except TypeError:  # a Literal of a list, say, has no hash
        return False


def _pydantic(model: Any, defs: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = model.model_json_schema()
    defs.update(schema.pop("$defs", {}))
    return schema


def _tuple(args: tuple[Any, ...], defs: dict[str, Any], names: dict[Any, str]) -> dict[str, Any]:
    if len(args) == 2 and args[1] is Ellipsis:
        return {"type": "array", "items": _schema(args[0], defs, names)}
    items = [_schema(a, defs, names) for a in args]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _values(values: list[Any], hint: Any) -> dict[str, Any]:
    if not values or not all(v is None or isinstance(v, (str, int, float)) for v in values):
        raise UsageError(f"{shown(hint)} has no JSON schema.", "Its values must be strings, numbers, booleans or None.")
    return {"enum": values}


def _record(record: Any, defs: dict[str, Any], names: dict[Any, str]) -> dict[str, Any]:
    """A reference to the object schema of a dataclass or TypedDict; what has no default is required."""
    if record not in names:
        name = record.__name__
        while name in defs:
            name += "_"
        names[record] = name
        defs[name] = {}  # taken, before a field refers to it
        hints = _hints(record)
        properties = {field: _schema(hint, defs, names) for field, hint in hints.items()}
        defs[name] = {
            "type": "object",
            "properties": properties,
            "required": [field for field in hints if _required(record, field)],
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{names[record]}"}


def _hints(record: Any) -> dict[str, Any]:
    try:
        hints = get_type_hints(record, include_extras=True)
    except NameError as e:
        raise UsageError(f"The hints of {record.__name__} cannot be read.", str(e)) from None
    if dataclasses.is_dataclass(record):
        return {f.name: hints[f.name] for f in dataclasses.fields(record) if f.init}
    return hints


def _required(record: Any, name: str) -> bool:
    if is_typeddict(record):
        return name in record.__required_keys__
    field = next(f for f in dataclasses.fields(record) if f.name == name)
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
