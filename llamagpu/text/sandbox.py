"""The sandbox of chat templates: jinja2 as transformers sets it up, within the limits of ``limits.py``.

A template comes with the model and is not trusted. jinja2's immutable sandbox refuses attributes and calls that lead
out of it. Nothing is computed while a template is compiled, because no limit would hold there.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor

from llamagpu.text.limits import bound, bound_numbers, concatenated, counted, guarded, listed

# Filters and methods that turn values into text, repeat or compare them. They are bounded before they run.
_FILTERS = (
    *("batch", "capitalize", "center", "dictsort", "e", "escape", "forceescape", "format", "groupby", "indent"),
    *("join", "lower", "max", "min", "pprint", "replace", "round", "slice", "sort", "string", "striptags", "sum"),
    *("title", "tojson", "trim", "truncate", "unique", "upper", "urlencode", "urlize", "wordcount", "wordwrap"),
    *("xmlattr",),
)
_METHODS = (
    *("center", "encode", "expandtabs", "format", "format_map", "join", "ljust", "replace", "rjust", "translate"),
    *("zfill", "to_bytes"),
)


def environment() -> jinja2.Environment:
    """The environment in which transformers compiles chat templates (transformers/utils/chat_template_utils.py)."""
    made = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
        finalize=_finalize,
        optimized=False,
    )
    del made.globals["lipsum"]  # random Latin, which no chat template needs; as text, it shows an address
    made.filters["tojson"] = _to_json
    made.filters |= {name: guarded(made.filters[name], name) for name in _FILTERS}
    made.filters |= {"counted": counted, "concatenated": _concatenated}
    made.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda format: now().strftime(format),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return made


def now() -> datetime.datetime:
    """The clock of ``strftime_now``."""
    return datetime.datetime.now()


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})
    concat = staticmethod(concatenated)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        bound_numbers(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, (str, bytes, int)) and name in _METHODS:
            args = tuple(map(listed, args))
            given = (*args, *kwargs.values())
            value, others = (given, (owner,)) if name == "join" else (owner, given)
            bound(value, others, name)
        elif isinstance(owner, (list, tuple)):
            counted(owner)
        return super().call(__context, __obj, *args, **kwargs)

    def _generate(self, source: jinja2.nodes.Template, *args: Any, **kwargs: Any) -> Any:
        return super()._generate(_Counting().visit(source), *args, **kwargs)


class _Counting(jinja2.visitor.NodeTransformer):
    """Puts a filter around what makes values without a call: lists, dictionaries, slices and ``~``."""

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _filtered(jinja2.nodes.List(node.nodes, lineno=node.lineno), "concatenated")

    def visit_Tuple(self, node: jinja2.nodes.Tuple) -> jinja2.nodes.Node:
        return self.visit_List(node) if node.ctx == "load" else node

    def visit_List(self, node: jinja2.nodes.Expr) -> jinja2.nodes.Node:
        self.generic_visit(node)
        constant = all(isinstance(item, jinja2.nodes.Const) for item in node.iter_child_nodes())
        return node if constant else _filtered(node, "counted")

    def visit_Dict(self, node: jinja2.nodes.Expr) -> jinja2.nodes.Node:
        return _filtered(self.generic_visit(node), "counted")

    def visit_Getitem(self, node: jinja2.nodes.Getitem) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "counted") if isinstance(node.arg, jinja2.nodes.Slice) else node


def _filtered(node: jinja2.nodes.Node, name: str) -> jinja2.nodes.Node:
    return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _concatenated(values: list[Any]) -> str:
    """What ``~`` makes of its operands."""
    for value in values:
        bound(value, (), "~")
    return concatenated(str(value) for value in values)


class _Generation(jinja2.ext.Extension):
    """The block ``{% generation %}``, which marks answers for training. It is rendered as its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares a set)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    @staticmethod
    def _body(caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """``dict`` in a template: it makes dictionaries, and has no attributes of a type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return counted(dict(*args, **kwargs))  # type: ignore[no-any-return]

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return counted(dict.fromkeys(keys, value))  # type: ignore[no-any-return]


class _Namespace(jinja2.utils.Namespace):
    """``namespace`` in a template, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any):  # so that a template can use the name self
        self, *given = args
        values = dict(*given, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"{name!r:.60} is not allowed in a namespace, because it is unsafe")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: not escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@jinja2.pass_eval_context  # so that it is not called while a template is compiled
def _finalize(context: Any, value: Any) -> Any:
    """An expression's value before it is written."""
    if not isinstance(value, str):
        bound(value, (), "text")
    return value
