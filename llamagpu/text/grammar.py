"""llguidance, which compiles grammars: https://github.com/guidance-ai/llguidance. An optional package."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from llamagpu.errors import UsageError

T = TypeVar("T")
_STACK = 512 * 2**20  # bytes of address space; pages that are not touched cost nothing
_LEXER_STATES = 50_000
_SYMBOLS = 200_000
_ITEMS = 30_000  # of the parser's state; an object has four for each property that may come next
_MOST_MESSAGE = 300  # characters of the library's messages, which may hold all of a grammar
_MOST_REPEATED = 20_000  # copies of the parts of a regular expression
_ASCII_CLASSES = {
    "d": "[[:digit:]]",
    "D": "[[:^digit:]]",
    "w": "[[:word:]]",
    "W": "[[:^word:]]",
    "s": "[[:space:]]",
    "S": "[[:^space:]]",
}
_stack_size = threading.Lock()


def library() -> Any:
    """llguidance.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import llguidance
    except ImportError:
        hint = "Run: pip install 'llamagpu[guided]'"
        raise UsageError("Structured output needs llguidance.", "It is not installed.", hint) from None
    return llguidance


def limits() -> Any:
    """What a grammar may cost: a few seconds, and some hundred MB."""
    return library().LLParserLimits(
        max_items_in_row=_ITEMS,
        max_lexer_states=_LEXER_STATES,
        max_grammar_size=_SYMBOLS,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )


def objection(grammar: str) -> str:
    """What the library says against a grammar, in a line; empty if nothing."""
    validate = library().LLMatcher.validate_grammar_with_warnings
    return _line(" ".join(with_room(lambda: validate(grammar, limits=limits()))[1]))


def _line(message: str) -> str:
    """What a message says, without the drawing of the place: of a regular expression, its error and itself."""
    said = re.search(r"regex parse error:\n +(.*)\n[ ^]*\nerror: (.*)", message)
    line = f"{said[2]}: {said[1]}" if said else next(iter(message.splitlines()), "")
    return line if len(line) <= _MOST_MESSAGE else line[:_MOST_MESSAGE] + "…"


def ascii_classes(pattern: str) -> str:
    """A regular expression in which the classes ``\\d``, ``\\w`` and ``\\s`` match ASCII only. In Rust's ``regex``
    they match the digits, letters and spaces of all scripts, of which a model may choose odd ones."""
    return re.sub(r"\\(.)", lambda found: _ASCII_CLASSES.get(found[1], found[0]), pattern, flags=re.S)


def compiled(grammar: str, tokenizer: Any) -> Any:
    """A matcher at the beginning of a grammar, for an ``LLTokenizer``. Its errors are states: see ``LLMatcher``."""
    return with_room(lambda: library().LLMatcher(tokenizer, grammar, log_level=0, limits=limits()))


def with_room(work: Callable[[], T]) -> T:
    """What a function returns on a thread with a large stack: the library compiles recursively, and ends the process
    where a chain of thousands of rules finds no room."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as e:
            done.set_exception(e)

    with _stack_size:
        before = threading.stack_size(_STACK)
        try:
            threading.Thread(target=run, name="llamagpu-grammar", daemon=True).start()
        finally:
            threading.stack_size(before)
    return done.result()


def check_regex(name: str, pattern: str) -> None:
    """Refuse a regular expression whose counted repetitions, nested in one another, make it too large.

    Raises:
        UsageError: it is.
    """
    sizes = [0]  # of the groups that are open
    last = 0  # of what a repetition would repeat
    for part in re.finditer(r"\\.|\[(?:\\.|[^\]\\])*\]|[()]|\{\d*(?:,\d*)?\}|.", pattern, re.S):
        text = part[0]
        if text == "(":
            sizes.append(0)
            continue
        if text == ")" and len(sizes) > 1:
            last = sizes.pop()
        elif text[0] == "{" and len(text) > 1:
            count = max((int(n) for n in re.findall(r"\d{1,9}", text)), default=1)
            sizes[-1] -= last
            last *= max(count, 1)
        else:
            last = 1
        sizes[-1] += last
        # A repetition of one character is cheap, however often; of a group it is not.
        if last > max(_MOST_REPEATED, len(pattern)) and text[0] == "{" and last > count:
            why = f"Its repetitions make {last} parts; the limit is {_MOST_REPEATED}."
            raise UsageError(f"{name} is too large.", why, "Use smaller counts.")
