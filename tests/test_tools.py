"""Tools: calls in the text of an answer, the schemas of functions, forced calls, and the loop that runs them."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Optional

import httpx
import numpy as np
import pytest
import serving
from serving import CHAT, error, events

from llamagpu import LLM, AsyncLLM, gpu
from llamagpu.engine.result import Result
from llamagpu.engine.tools_loop import Rounds, run, run_async
from llamagpu.errors import RoundsError, UsageError
from llamagpu.text import ChatTemplate, TextStream, Tokenizer
from llamagpu.text.functions import call_function, check_arguments, function_schema
from llamagpu.text.tool_calls import CallReader
from llamagpu.text.tool_forms import FORMS, form_of
from llamagpu.text.tool_grammar import call_shape
from llamagpu.text.tools import tool_use

FORM = {form.name: form for form in FORMS}
# Ours, in the form of Hermes and Qwen. The comment is how the form is recognised.
TEMPLATE = (
    '{# <tool_call>\n{"name": …, "arguments": …}\n</tool_call> #}'
    "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}"
    "{% for m in messages %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}\n{% endfor %}"
)
MESSAGES = [{"role": "user", "content": "Tom wants to know the weather."}]


def weather(city: Literal["Rome", "Oslo"], day: Literal[1, 2] = 1) -> str:
    """Forecast of a city.

    Args:
        city: Where.
        day: How many days ahead,
            from today.

    Returns:
        The weather.
    """
    return f"It rains in {city} on day {day}."


WEATHER = function_schema(weather)
CLOCK = {"type": "function", "function": {"name": "clock"}}

# --- forms ---------------------------------------------------------------------------------

CALLS: list[tuple[str, str, str, list[tuple[str, Any]]]] = [
    (
        "hermes",
        'Hm. \n<tool_call>\n{"name": "a", "arguments": {"x": "}\\"{<"}}\n</tool_call>',
        "Hm.",
        [("a", {"x": '}"{<'})],
    ),
    (
        "hermes",
        '<tool_call>{"name": "a", "arguments": {}}</tool_call>\n<tool_call>{"arguments": {"y": [1]}, "name":"b"}',
        "",
        [("a", {}), ("b", {"y": [1]})],
    ),
    ("hermes", '<tool_call>{"name": "a", "arguments": "{\\"x\\": 1}"}</tool_call> and', " and", [("a", {"x": 1})]),
    (
        "mistral",
        '[TOOL_CALLS]a[ARGS]{"x": 1}[TOOL_CALLS]b[CALL_ID]abcdefgh1[ARGS] {}',
        "",
        [("a", {"x": 1}), ("b", {})],
    ),
    (
        "mistral-list",
        '[TOOL_CALLS] [{"name": "a", "arguments": {}}, {"name": "b", "arguments": {"x": {}}, "id": "1"}]',
        "",
        [("a", {}), ("b", {"x": {}})],
    ),
    ("mistral-list", '[TOOL_CALLS]{"name": "a", "arguments": {}}', "", [("a", {})]),
    (
        "llama",
        ' {"name": "a", "parameters": {"é": null}}; {"name": "b", "parameters": {}}',
        "",
        [("a", {"é": None}), ("b", {})],
    ),
    ("llama", '<|python_tag|>{"name": "a", "parameters": {}}', "", [("a", {})]),
    ("llama", 'I call <function=a>{"x": 1}</function>', "I call", [("a", {"x": 1})]),
    ("function", "<function=a>{}</function><function=b>{}</function>", "", [("a", {}), ("b", {})]),
]
NO_CALLS = [
    ("hermes", 'no <tool_call> here, {"name": 1}  \n'),
    ("hermes", '<tool_call>\n{"name": "a", "arguments": {"x": NaN}}\n</tool_call>'),
    ("hermes", '<tool_call>{"name": "a", "arguments": {"x": 1, "x": 2}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "a", "arguments": {"x": "\\ud800"}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "a", "arguments": {"x": "line\nbreak"}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "a", "arguments": {"x": [1}]}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "a", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "a", "arguments": {}, "parameters": {}}</tool_call>'),
    ("hermes", '<tool_call>\n{"name": "a", "arguments": {"x": 1'),
    ("hermes", '<tool_call>{"name": "a", "arguments": {"x": 1e999}}</tool_call>'),
    ("hermes", f'<tool_call>{{"name": "a", "arguments": {{"x": {"[" * 1100}{"]" * 1100}}}}}</tool_call>'),
    ("hermes", "a < b, <tool"),
    ("mistral", "[TOOL_CALLS]" + "a" * 300 + "[ARGS]{}"),
    ("mistral", "[TOOL_CALLS]two words[ARGS]{}"),
    ("mistral-list", "[TOOL_CALLS] none"),
    ("llama", '{"name": "Bob", "age": 3} is JSON'),
    ("llama", "<|python_tag|>print(1)"),
    ("llama", 'The answer: {"name": "a", "parameters": {}}'),
]


def read(form: str, pieces: list[str], most: int | None = None) -> tuple[str, list[Any], dict[int, list[str]]]:
    """The text, the calls, and the joined deltas, whose first one is checked."""
    reader = CallReader(FORM[form], most)
    text = "".join(reader.push(p) for p in pieces) + reader.end()
    told: dict[int, list[str]] = {}
    for delta in reader.deltas:
        if delta["index"] not in told:
            assert delta.keys() == {"index", "id", "type", "function"}
            told[delta["index"]] = [delta["function"]["name"], ""]
        told[delta["index"]][1] += delta["function"]["arguments"]
    return text, [(c.name, c.arguments, c.raw) for c in reader.calls], told


def splits(text: str) -> Iterator[list[str]]:
    """The text in characters, and in two and three pieces."""
    yield list(text)
    cuts = range(0, len(text) + 1, max(1, len(text) // 100))
    yield from ([text[:i], text[i:]] for i in cuts)
    rng = random.Random(len(text))
    for _ in range(5):
        i, j = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        yield [text[:i], text[i:j], text[j:]]


@pytest.mark.parametrize(("form", "text", "rest", "calls"), CALLS)
def test_calls_are_read_whatever_the_pieces(form: str, text: str, rest: str, calls: list[Any]) -> None:
    whole = read(form, [text])
    assert whole[0] == rest
    assert [call[:2] for call in whole[1]] == calls
    assert list(whole[2].values()) == [[name, raw] for name, _, raw in whole[1]]
    assert all(read(form, pieces) == whole for pieces in splits(text))
    first = read(form, [text], 1)
    assert first[1] == whole[1][:1]  # and what follows is dropped
    assert all(read(form, pieces, 1) == first for pieces in splits(text))


@pytest.mark.parametrize(("form", "text"), NO_CALLS, ids=[t[:40] for _, t in NO_CALLS])
def test_what_is_no_call_is_text(form: str, text: str) -> None:
    whole = read(form, [text])
    assert whole[:2] == (text, [])
    assert all(read(form, pieces) == whole for pieces in splits(text))


def test_ids_of_calls() -> None:
    given = CallReader(FORM["mistral"])
    given.push("[TOOL_CALLS]b[CALL_ID]abcdefgh1[ARGS]{}")
    assert given.calls[0].id == given.deltas[0]["id"] == "abcdefgh1"
    assert given.calls[0].as_openai()["function"] == {"name": "b", "arguments": "{}"}
    made = [FORM["mistral"].new_id(), FORM["hermes"].new_id(), FORM["hermes"].new_id()]
    assert [len(i) for i in made] == [9, 29, 29]
    assert made[1] != made[2]


def test_the_form_is_that_of_the_template(shared: Path) -> None:
    expected = {
        "HuggingFaceTB-SmolLM3-3B": None,
        "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "hermes",
        "Qwen-Qwen2.5-7B-Instruct": "hermes",
        "meta-llama-Llama-3.1-8B-Instruct": "llama",
        "meta-llama-Llama-3.2-3B-Instruct": "llama",
        "meta-llama-Llama-3.3-70B-Instruct": "llama",
    }
    several = {"NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "Qwen-Qwen2.5-7B-Instruct"}
    for path in (shared / "tokenizers" / "chat-templates").glob("*.jinja"):
        template, form = ChatTemplate(path.read_text(), {"bos_token": "<s>"}), form_of(path.read_text())
        assert (form and form.name) == expected[path.stem], path
        assert template.takes_tools == (form is not None)
        assert template.takes_several_calls == (path.stem in several) or form is None


def test_forms_of_other_templates() -> None:
    mistral = "{{ '[TOOL_CALLS]' + name + '[ARGS]' + arguments }}"
    assert form_of(mistral) is FORM["mistral"]
    assert form_of("{{ '[TOOL_CALLS][' }}{{ call | tojson }}") is FORM["mistral-list"]
    assert form_of("<function=name>{}</function>") is FORM["function"]
    for unknown in ("<tool_call>\n<function=f>\n<parameter=x>1</parameter></function></tool_call>", "{{ tools }}", ""):
        assert form_of(unknown) is None


@pytest.mark.slow
def test_special_tokens_that_open_a_call_are_kept(shared: Path) -> None:
    folder = shared / "tokenizers" / "llama3"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer = Tokenizer((folder / "tokenizer.json").read_text(), config, 128256)
    template = ChatTemplate(config["chat_template"], {"bos_token": "<|begin_of_text|>"})
    use = tool_use(template, tokenizer, [WEATHER])
    assert use is not None
    assert use.form is FORM["llama"]
    assert use.most == 1  # the template shows no more
    text = '<|python_tag|>{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>'
    stream, reader = TextStream(tokenizer, keep=use.keep), use.reader()
    assert "".join(reader.push(stream.push(i)) for i in tokenizer.encode(text, special=False)) == ""
    assert [c.arguments for c in reader.calls] == [{"city": "Oslo"}]
    assert reader.full


# --- functions -----------------------------------------------------------------------------


class Unit(enum.Enum):
    C = "celsius"


@dataclasses.dataclass
class Place:
    name: str
    at: tuple[float, float] = (0.0, 0.0)


def numpy_style(x: int, y: list[str]) -> None:
    """Does it.

    Parameters
    ----------
    x : int
        A number.
    y : list
        Texts.
    """


def sphinx_style(x: int, y: list[str]) -> None:
    """Does it.

    :param x: A number.
    :param y: Texts.
    """


def test_schemas_of_functions() -> None:
    assert WEATHER == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Forecast of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"enum": ["Rome", "Oslo"], "description": "Where."},
                    "day": {"enum": [1, 2], "description": "How many days ahead, from today."},
                },
                "required": ["city"],
            },
            "return": {"type": "string", "description": "The weather."},
        },
    }
    for function in (numpy_style, sphinx_style):
        properties = function_schema(function)["function"]["parameters"]["properties"]
        assert [p["description"] for p in properties.values()] == ["A number.", "Texts."]
    assert function_schema(lambda: None)["function"]["name"] == "<lambda>"  # refused as a tool, by its name


def test_functions_without_a_schema_are_refused() -> None:
    def unhinted(x): ...  # type: ignore[no-untyped-def]
    def many(*xs: int) -> None: ...
    def strange(x: complex) -> None: ...
    def undefined(x: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    for function, why in (
        (unhinted, "x of unhinted has no type hint"),
        (many, r"parameter \*xs"),
        (strange, "x of strange cannot be told"),
        (undefined, "hints of undefined cannot be read"),
    ):
        with pytest.raises(UsageError, match=why):
            function_schema(function)
    with pytest.raises(UsageError, match="has no name"):
        function_schema(object())  # type: ignore[arg-type]


def test_arguments_are_checked_and_converted() -> None:
    def f(place: Place, unit: Unit = Unit.C, more: Optional[list[Place]] = None, n: int | Place = 1) -> Any:  # noqa: UP045
        return place, unit, more, n

    schema = function_schema(f)["function"]["parameters"]
    given = {"place": {"name": "a", "at": [1, 2]}, "unit": "celsius", "more": [{"name": "b"}], "n": {"name": "c"}}
    assert check_arguments(schema, given) is None
    assert call_function(f, given) == (Place("a", (1, 2)), Unit.C, [Place("b")], Place("c"))
    assert "'name' is a required property" in str(check_arguments(schema, {"place": {}}))
    assert "'unit'" in str(check_arguments(schema, given | {"unit": "kelvin"}))


# --- tool use ------------------------------------------------------------------------------


def test_choices_and_refusals(story: LLM) -> None:
    tokenizer, template = story._tokenizer, ChatTemplate(TEMPLATE, {})

    def use(tools: Any, *args: Any) -> Any:
        return tool_use(template, tokenizer, tools, *args)

    assert use([weather]).tools == use([WEATHER], None).tools == [WEATHER]
    assert use([]) is use(None) is use([weather], "none") is None
    assert (use([weather]).shape, use([weather]).most, use([weather], "auto", False).most) == (None, None, 1)
    named = {"type": "function", "function": {"name": "weather"}}
    assert use([weather, CLOCK], named) == use([weather, CLOCK], "weather")
    assert use([weather], "weather").most == 1
    schema = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"contains": 1}}}}
    for args, why in (
        (([weather], "other"), "one of auto, none, required, or a tool: weather"),
        (([], "required"), "tool_choice is 'required'"),
        (([weather], 3), "tool_choice is 3"),
        (([weather], "auto", "yes"), "parallel_tool_calls is 'yes'"),
        (([weather, WEATHER],), "Two tools"),
        (([{"name": "a b"}],), "no name of a tool"),
        (([{"name": "auto"}],), "cannot have the name auto"),
        (([lambda: None],), "no name of a tool"),
        (([{"name": "a", "parameters": 1}],), "parameters of a are 1"),
        (("weather",), "not a list of tools"),
        (([schema], "required"), "parameters of f cannot become a grammar"),
    ):
        with pytest.raises(UsageError, match=why):
            use(*args)
    for source, why in (("{{ messages }}", "does not know tools"), ("{{ tools }}", "unknown form")):
        with pytest.raises(UsageError, match=why):
            tool_use(ChatTemplate(source, {}), tokenizer, [weather])


@pytest.mark.parametrize(("form", "several"), list(itertools.product(FORM, (False, True))))
def test_grammars_allow_only_what_is_read(story: LLM, form: str, several: bool) -> None:
    """Random walks through the grammar of each form. Its special tokens are those of the vocabulary that have no
    other meaning here."""
    tokenizer = story._tokenizer
    names = sorted(m for m in FORM[form].marks if m[0] in "[" or "|" in m)
    free = sorted(tokenizer.special_ids - set(story.config.eos_token_id))
    special = dict(zip(names, free, strict=False)) if len(free) >= len(names) else {}
    shape = call_shape(FORM[form], [WEATHER, CLOCK], special, several=several)
    start = story._guides.guide(shape)
    texts = {id: text for text, id in special.items()}
    rng, row = random.Random(form), np.zeros((1, -(-story.config.vocab_size // 32)), np.uint32)
    for _ in range(4):
        guide, text = start.copy(), ""
        while not guide.ended:
            guide.masks(row, [])
            id = int(rng.choice(np.flatnonzero(np.unpackbits(row[0].view(np.uint8), bitorder="little"))))
            guide.take(id)
            text += "" if id in story.config.eos_token_id else texts.get(id) or tokenizer.token_bytes(id).decode()
        rest, calls, _ = read(form, [text])
        assert rest == ""
        assert 1 <= len(calls) <= (16 if several else 1)
        assert all(
            name == "clock" or check_arguments(WEATHER["function"]["parameters"], a) is None for name, a, _ in calls
        )


@pytest.fixture(scope="module")
def caller(device: gpu.Device) -> Iterator[LLM]:
    """The bundled model, with a template that knows tools. It tells stories: only a grammar makes it call."""
    with LLM(device=device, chat_template=TEMPLATE) as llm:
        yield llm


def test_forced_calls(caller: LLM) -> None:
    whole = caller.chat(MESSAGES, tools=[weather], tool_choice="weather", max_tokens=60)
    assert (whole.text, whole.finish_reason) == ("", "tool_calls")
    [call] = whole.tool_calls
    assert check_arguments(WEATHER["function"]["parameters"], call.arguments) is None
    assert whole.as_dict()["tool_calls"][0]["function"]["name"] == "weather"
    assert whole.message == {"role": "assistant", "content": None, "tool_calls": [call.as_openai()]}
    with caller.chat_stream(MESSAGES, tools=[weather], tool_choice="required", max_tokens=60) as stream:
        assert list(stream) == []
        assert json.loads("".join(d["function"]["arguments"] for d in stream.call_deltas)) == call.arguments
    cut = caller.chat(MESSAGES, tools=[weather], tool_choice="weather", max_tokens=24)
    assert (cut.finish_reason, cut.tool_calls) == ("length", ())
    assert cut.text.startswith('<tool_call>\n{"name": "weather"')
    free = caller.chat(MESSAGES, tools=[weather], max_tokens=5)
    assert free.text == caller.generate(caller.apply_chat_template(MESSAGES, tools=[weather]), max_tokens=5).text
    with pytest.raises(UsageError, match="json_object and tools exclude"):
        caller.chat(MESSAGES, tools=[weather], json_object=True)


# --- the loop ------------------------------------------------------------------------------


class Script:
    """A model whose answers are written down. It notes what it is asked."""

    def __init__(self, *answers: str):
        self.answers, self.asked = list(answers), []

    def chat(self, messages: list[dict[str, Any]], **options: Any) -> Result:
        self.asked.append((json.loads(json.dumps(messages)), options.get("tool_choice")))
        reader = CallReader(FORM["hermes"])
        text = reader.push(self.answers.pop(0)) + reader.end()
        return Result(text, [], [], "stop", False, None, tool_calls=tuple(reader.calls))

    async def chat_async(self, messages: list[dict[str, Any]], **options: Any) -> Result:
        return self.chat(messages, **options)


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def fails(x: int) -> int:
    raise ValueError(f"bad {x}")


def table(x: int) -> Any:
    return {"x": np.arange(x), "place": Place("a"), "set": {1}}


FUNCTIONS = [weather, fails, table]


def test_the_loop_runs_calls_and_tells_their_errors() -> None:
    calls = [call("weather", city="Oslo"), call("table", x=2)]
    wrong = [call("nothing"), call("weather", city="Paris"), call("weather", city="Rome", wind=1), call("fails", x=1)]
    model = Script("Wait. " + "\n".join(calls), "".join(wrong), "It rains.")
    found = run(model.chat, Rounds(MESSAGES, FUNCTIONS, 3, {"tool_choice": "required"}))
    assert (found.text, found.finish_reason) == ("It rains.", "stop")
    assert [choice for _, choice in model.asked] == ["required", "auto", "auto"]
    said = found.messages
    assert [m["role"] for m in said] == ["user", "assistant", *["tool"] * 2, "assistant", *["tool"] * 4, "assistant"]
    assert said[1]["content"] == "Wait."
    assert [m["tool_call_id"] for m in said[2:4]] == [c["id"] for c in said[1]["tool_calls"]]
    assert said[2]["content"] == "It rains in Oslo on day 1."
    assert json.loads(said[3]["content"]) == {"x": [0, 1], "place": {"name": "a", "at": [0.0, 0.0]}, "set": [1]}
    told = [m["content"] for m in said[5:9]]
    assert told[0] == "There is no tool nothing. The tools: weather, fails, table."
    assert "'Paris' is not one of ['Rome', 'Oslo']" in told[1]
    assert "'wind' was unexpected" in told[2]
    assert told[3] == "Error: ValueError: bad 1"
    assert said[:1] == MESSAGES  # the caller's list is as it was
    assert len(MESSAGES) == 1


def test_the_loop_ends() -> None:
    model = Script(*[call("table", x=1)] * 3)
    with pytest.raises(RoundsError, match="after 2 rounds") as found:
        run(model.chat, Rounds(MESSAGES, FUNCTIONS, 2, {}))
    assert [m["role"] for m in found.value.messages] == ["user", "assistant", "tool", "assistant", "tool"]
    for functions, most, why in (([WEATHER], 3, "no Python function"), ([weather], 0, "max_rounds is 0")):
        with pytest.raises(UsageError, match=why):
            Rounds(MESSAGES, functions, most, {})


def test_coroutine_functions() -> None:
    async def slow(x: int) -> int:
        await asyncio.sleep(0)
        return 2 // x

    model = Script(call("slow", x=1) + call("slow", x=0) + call("weather", city="Rome"), "Done.")
    found = asyncio.run(run_async(model.chat_async, Rounds(MESSAGES, [slow, weather], 3, {})))
    told = [m["content"] for m in found.messages if m["role"] == "tool"]
    assert told == ["2", "Error: ZeroDivisionError: integer division or modulo by zero", "It rains in Rome on day 1."]
    with pytest.raises(UsageError, match=r"slow is a coroutine function.*\n.*\n.*AsyncLLM.run"):
        run(Script().chat, Rounds(MESSAGES, [slow], 3, {}))


def test_a_model_runs_a_function(caller: LLM) -> None:
    found = caller.run(MESSAGES, [weather], tool_choice="weather", max_tokens=60)
    assert [m["role"] for m in found.messages] == ["user", "assistant", "tool", "assistant"]
    assert found.messages[2]["content"].startswith("It rains in ")
    assert found.text == found.messages[-1]["content"]
    again = asyncio.run(AsyncLLM(caller).run(MESSAGES, [weather], tool_choice="weather", max_tokens=60))
    assert again.text == found.text


@pytest.mark.slow
def test_an_isolated_model_calls_functions_here() -> None:
    found = []
    with LLM(chat_template=TEMPLATE, isolate=True) as llm:
        llm.run(MESSAGES, [lister(found)], tool_choice="note", max_tokens=60)
    assert found in (["a"], ["b"])


def lister(found: list[str]) -> Any:
    """A function that leaves a trace in this process."""

    def note(word: Literal["a", "b"]) -> None:
        found.append(word)

    return note


# --- HTTP ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(caller: LLM, story: LLM) -> Iterator[str]:
    with serving.running(serving.Borrowed(caller=caller, stories=story)) as url:
        yield url


def test_calls_over_http(url: str, caller: LLM) -> None:
    body = {"model": "caller", "messages": MESSAGES, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 60}
    body |= {"parallel_tool_calls": False}
    expected = caller.chat(MESSAGES, tools=[WEATHER], tool_choice="weather", max_tokens=60).tool_calls[0]
    with httpx.Client(base_url=url, timeout=30) as client:
        found = client.post(CHAT, json=body).json()
        choice = found["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        [made] = choice["message"]["tool_calls"]
        assert made["function"] == {"name": "weather", "arguments": expected.raw}
        with client.stream("POST", CHAT, json=body | {"stream": True, "stream_options": {"include_usage": True}}) as r:
            chunks = events(r)
        deltas = [d for c in chunks if c["choices"] for d in c["choices"][0]["delta"].get("tool_calls", [])]
        assert deltas[0]["function"] == {"name": "weather", "arguments": ""}
        assert "".join(d["function"]["arguments"] for d in deltas) == expected.raw
        assert not any(c["choices"] and c["choices"][0]["delta"].get("content") for c in chunks)
        assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
        assert chunks[-1]["usage"]["completion_tokens"] == found["usage"]["completion_tokens"]
        answered = [*MESSAGES, choice["message"], {"role": "tool", "tool_call_id": made["id"], "content": "Rain."}]
        free = body | {"messages": answered, "tool_choice": "auto", "max_tokens": 5}
        text = client.post(CHAT, json=free).json()["choices"][0]["message"]
        assert text["content"]
        assert "tool_calls" not in text
        for more, param, why in (
            ({"tool_choice": "other"}, "tool_choice", "tool_choice is 'other'"),
            ({"tools": [{"type": "function"}]}, "tools", "is not a tool"),
            ({"model": "stories"}, "tools", "does not know tools"),
            ({"tools": 3}, "tools", "list"),
            ({"response_format": {"type": "json_object"}}, "response_format", "response_format and tools exclude"),
        ):
            refused = client.post(CHAT, json=body | more)
            assert refused.status_code == 400
            assert why in error(refused)["message"]
            assert error(refused)["param"] == param


@pytest.mark.slow
def test_fifty_conversations_of_the_openai_client(url: str) -> None:
    """Forced calls are valid, streamed and whole, and their results go back."""
    import openai  # takes a second

    city = {"enum": ["Rome", "Oslo", "Lima"]}
    note = {"type": "string", "pattern": "^[a-z ]{3,12}$"}
    days = {"type": "integer", "minimum": 1, "maximum": 99}
    schemas = {
        name: {"type": "object", "properties": properties, "required": [*properties]}
        for name, properties in (("forecast", {"city": city, "days": days}), ("write_note", {"note": note}))
    }
    tools: Any = [{"type": "function", "function": {"name": n, "parameters": p}} for n, p in schemas.items()]
    valid = 0
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        for seed in range(50):
            messages: list[Any] = [{"role": "user", "content": f"Tom has {seed} balls."}]
            options: dict[str, Any] = {"model": "caller", "tools": tools, "temperature": 1.0, "seed": seed}
            options |= {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 80}
            if seed % 2:
                with client.chat.completions.stream(messages=messages, **options) as stream:
                    choice = stream.get_final_completion().choices[0]
            else:
                choice = client.chat.completions.create(messages=messages, **options).choices[0]
            assert choice.finish_reason == "tool_calls"
            [made] = choice.message.tool_calls
            arguments = json.loads(made.function.arguments)
            valid += check_arguments(schemas[made.function.name], arguments) is None
            messages += [choice.message, {"role": "tool", "tool_call_id": made.id, "content": "Done."}]
            last = client.chat.completions.create(messages=messages, model="caller", tools=tools, max_tokens=2)
            assert last.choices[0].message.content
    assert valid == 50
