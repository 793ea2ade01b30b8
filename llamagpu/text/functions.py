"""Python functions as tools: their schemas from type hints and docstrings, and their calls with JSON values.

The schema is that of transformers' ``get_json_schema``, except that hints are written by ``hints.schema_of``, and that
docstrings may also have NumPy's or Sphinx's style, or be missing.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from llamagpu.errors import UsageError, shown
from llamagpu.text.hints import schema_of

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """The tool that a function is, in OpenAI's form.

    Its parameters have type hints and can be given by name; one with a default may be left out. Descriptions come from
    the docstring, in the style of Google, NumPy or Sphinx.

    Raises:
        UsageError: a parameter has no hint, one that JSON cannot express, or cannot be given by name; or the docstring
            cannot be read, or the package that reads it is missing.
    """
    name, hints = _name(function), _hints(function)
    about, described, returned = _described(function, name)
    properties: dict[str, Any] = {}
    defs: dict[str, Any] = {}
    required = []
    for parameter in _parameters(function, name):
        schema = _schema(
            f"The parameter {parameter.name} of {name}", hints.get(parameter.name, inspect.Parameter.empty)
        )
        defs |= _merged(defs, schema.pop("$defs", {}), name)
        properties[parameter.name] = schema | {"description": described.get(parameter.name, "")}
        required += [parameter.name] if parameter.default is parameter.empty else []
    schema = {"type": "object", "properties": properties}
    schema |= {"required": required} if required else {}
    schema |= {"$defs": defs} if defs else {}
    tool = {"name": name, "description": about, "parameters": schema}
    return {"type": "function", "function": tool | _return(hints.get("return", Any), returned)}


def call_function(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a function with JSON values that are valid by its schema: they become what its hints say."""
    hints = _hints(function)
    return function(**{key: converted(value, hints.get(key, Any)) for key, value in arguments.items()})


def converted(value: Any, hint: Any) -> Any:
    """A valid JSON value as its type hint says: members of enums, tuples, dataclasses and Pydantic models."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return converted(value, args[0])
    if hasattr(hint, "model_validate"):
        return hint.model_validate(value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint, include_extras=True)
        return hint(**{key: converted(v, hints[key]) for key, v in value.items()})
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    if origin in (Union, types.UnionType):
        return converted(value, next((a for a in args if _is_of(value, a)), Any))
    if origin is tuple:
        kinds = [args[0]] * len(value) if args[1:] == (Ellipsis,) else args
        return tuple(converted(v, kind) for v, kind in zip(value, kinds, strict=True))
    if origin in (list, Sequence):
        return [converted(v, args[0]) for v in value]
    if origin in (dict, Mapping):
        return {key: converted(v, args[1]) for key, v in value.items()}
    if is_typeddict(hint):
        hints = get_type_hints(hint)
        return {key: converted(v, hints.get(key, Any)) for key, v in value.items()}
    return value


def check_arguments(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> str | None:
    """What is wrong with a call's arguments by a JSON schema, for the model to read; None if nothing is.

    Raises:
        UsageError: the package that checks them is missing.
    """
    error = _first_error(schema, arguments)
    if error is None:
        return None
    place = "".join(f"[{part!r}]" for part in error.absolute_path)
    return f"arguments{place}: {error.message}" if place else str(error.message)


def _first_error(schema: Mapping[str, Any], value: Any) -> Any:
    try:
        import jsonschema
    except ImportError:
        raise missing("jsonschema", "The arguments of calls are checked") from None
    return jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(value))


def missing(package: str, what: str) -> UsageError:
    """The error for an optional package that is not installed."""
    return UsageError(f"{what} by {package}.", "It is not installed.", "Run: pip install 'llamagpu[tools]'")


def _is_of(value: Any, hint: Any) -> bool:
    return _first_error(schema_of(hint), value) is None


def _name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", None)
    if not isinstance(name, str):
        raise UsageError(
            f"{shown(function)} has no name.", "A tool is called by its name.", "Write a function with def."
        )
    return name


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as e:
        raise UsageError(f"The type hints of {_name(function)} cannot be read.", str(e)) from None


def _parameters(function: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    try:
        found = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as e:
        raise UsageError(f"The parameters of {name} are not known.", str(e)) from None
    for parameter in found:
        if parameter.kind not in _BY_NAME:
            why = "A call gives every argument by its name."
            raise UsageError(f"The parameter {parameter} of {name} has no place in a call.", why)
    return found


def _schema(what: str, hint: Any) -> dict[str, Any]:
    if hint is inspect.Parameter.empty:
        raise UsageError(f"{what} has no type hint.", "The model is told the types.", "Add one, such as int or str.")
    try:
        return schema_of(hint)
    except UsageError as e:
        raise UsageError(f"{what} cannot be told to a model.", f"{e.what} {e.why}", e.hint) from None


def _merged(defs: Mapping[str, Any], more: dict[str, Any], name: str) -> dict[str, Any]:
    for key in more:
        if defs.get(key, more[key]) != more[key]:
            raise UsageError(f"Two types of the parameters of {name} are called {key}.", "", "Rename one.")
    return more


def _return(hint: Any, about: str | None) -> dict[str, Any]:
    """The type of the result, which some templates show, if JSON can express it."""
    try:
        schema = schema_of(hint)
    except UsageError:
        return {}
    return {"return": schema | ({"description": about} if about else {})} if schema else {}


def _described(function: Callable[..., Any], name: str) -> tuple[str, dict[str, str], str | None]:
    """The descriptions of a function, its parameters and its result."""
    text = inspect.getdoc(function)
    if not text:
        return "", {}, None
    try:
        import docstring_parser
    except ImportError:
        raise missing("docstring-parser", f"The docstring of {name} is read") from None
    try:
        found = docstring_parser.parse(text)
    except docstring_parser.ParseError as e:
        raise UsageError(f"The docstring of {name} cannot be read.", str(e)) from None
    about = "\n".join(part for part in (found.short_description, found.long_description) if part)
    parameters = {p.arg_name: " ".join((p.description or "").split()) for p in found.params}
    return about, parameters, None if found.returns is None else found.returns.description
