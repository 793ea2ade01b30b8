"""The forms in which models write tool calls, as a table: how each is recognised, and how its calls begin and end.

A model writes calls as its chat template showed them in training, so the template decides. Sources: the published
templates of Llama 3.1 to 3.3, Hermes 2 Pro, Qwen 2.5 and 3, SmolLM3 and Mistral, and the prompt formats that Meta and
Mistral AI document.
"""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass
from typing import Literal

# What stands between the two ends of a call: an object with name and arguments, a list of them, or a name, a separator
# and an object with the arguments.
Body = Literal["object", "list", "named"]


@dataclass(frozen=True)
class Opening:
    """A way to begin calls.

    Attributes:
        begin, end: the texts around the body; special tokens count as their texts.
        body: see ``Body``.
        separator: between the name and the arguments of a ``named`` body.
        tag: begins an id between the name and the separator, which some models write.
        leads: it opens a call only at the beginning of the answer, or after another call.
        inner: written between ``begin`` and the body, and between the body and ``end``.
    """

    begin: str
    end: str
    body: Body
    separator: str = ""
    tag: str = ""
    leads: bool = False
    inner: str = ""


@dataclass(frozen=True)
class Form:
    """A form of calls.

    Attributes:
        name: what documents call it.
        shows: texts of which the template has all.
        hides: texts of which it has none.
        openings: the ways to begin calls that are read. A constrained answer takes the first.
        key: the name of the arguments in an ``object`` or ``list``; both names are read.
        between: written between two calls of a constrained answer. These characters and spaces are no text there.
        short_ids: whether ids of calls have 9 characters, which the template checks, instead of OpenAI's length.
    """

    name: str
    shows: tuple[str, ...]
    hides: tuple[str, ...]
    openings: tuple[Opening, ...]
    key: str = "arguments"
    between: str = ""
    short_ids: bool = False

    def new_id(self) -> str:
        """An id for a call."""
        characters = string.ascii_letters + string.digits
        made = "".join(secrets.choice(characters) for _ in range(9 if self.short_ids else 24))
        return made if self.short_ids else f"call_{made}"

    @property
    def marks(self) -> frozenset[str]:
        """The texts that are tokens of their own in some vocabularies, and must not be lost in decoding."""
        parts = {text for o in self.openings for text in (o.begin, o.end, o.separator, o.tag)}
        return frozenset(text for text in parts if len(text) > 1)


_FUNCTION = Opening("<function=", "</function>", "named", separator=">")
FORMS = (
    Form(
        "hermes",
        shows=("<tool_call>", '"name"', '"arguments"'),
        hides=("<function=", "<arg_key>", "[TOOL_CALLS]"),
        openings=(Opening("<tool_call>", "</tool_call>", "object", inner="\n"),),
        between="\n",
    ),
    Form(
        "mistral",
        shows=("[TOOL_CALLS]", "[ARGS]"),
        hides=(),
        openings=(Opening("[TOOL_CALLS]", "", "named", separator="[ARGS]", tag="[CALL_ID]"),),
        short_ids=True,
    ),
    Form(
        "mistral-list",
        shows=("[TOOL_CALLS]",),
        hides=("[ARGS]",),
        openings=(Opening("[TOOL_CALLS]", "", "list"),),
        short_ids=True,
    ),
    Form(
        "llama",
        shows=('"parameters": ', "ipython"),
        hides=("<tool_call>", "[TOOL_CALLS]"),
        openings=(
            Opening("", "", "object", leads=True),
            Opening("<|python_tag|>", "", "object"),
            _FUNCTION,
        ),
        key="parameters",
        between="; ",
    ),
    Form(
        "function",
        shows=("<function=", "</function>"),
        hides=("<parameter=", "<tool_call>", "ipython"),
        openings=(_FUNCTION,),
    ),
)


def form_of(template: str) -> Form | None:
    """The form of calls that the source of a chat template shows; None if it shows none of the table."""
    shown = template.replace('\\"', '"')  # quotes in Jinja's strings
    return next((f for f in FORMS if all(t in shown for t in f.shows) and not any(t in shown for t in f.hides)), None)
