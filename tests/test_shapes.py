"""Structured output: shapes, their grammars over vocabularies, and the texts of models."""

from __future__ import annotations

import dataclasses
import enum
import json
import pickle
import re
import sys
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypedDict

import jsonschema
import llguidance
import numpy as np
import pytest
import tokenizers
from pydantic import BaseModel
from schemas import SCHEMAS
from tokenizers import decoders, models
from walks import allowed, empty_masks, liked, walk

from llamagpu import LLM
from llamagpu.errors import LlamaGPUError, UsageError
from llamagpu.text import Tokenizer
from llamagpu.text.guide import Guides
from llamagpu.text.hints import schema_of
from llamagpu.text.shape import Shape, shape_of

BUNDLED = Path(__file__).resolve().parent.parent / "weights" / "stories"
SPARE = 37  # ids of the model's logits that the tokenizer lacks
STOPS = frozenset({1, 2})


def read(folder: Path) -> Tokenizer:
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text()) if config.is_file() else {}
    return Tokenizer((folder / "tokenizer.json").read_text(), settings, 10**6)


def size(tokenizer: Tokenizer) -> int:
    return max(tokenizer.vocab.values()) + 1 + SPARE


@pytest.fixture(scope="module")
def bundled() -> Tokenizer:
    return read(BUNDLED)


@pytest.fixture(scope="module")
def guides(bundled: Tokenizer) -> Guides:
    return Guides(bundled, size(bundled), STOPS)


def shape(**options: Any) -> Shape:
    found = shape_of(**options)
    assert found is not None
    return found


def bits(row: Any) -> list[int]:
    return [int(i) for i in allowed(row)]


# --- shapes ----------------------------------------------------------------------------------


class Mood(enum.Enum):
    GLAD = "glad"
    SAD = "sad"


@dataclasses.dataclass
class Pet:
    name: str
    moods: list[Mood]
    friend: Pet | None = None


@dataclasses.dataclass
class Toy:
    mood: Mood
    soft: bool


class Owner(TypedDict, total=False):
    pet: Pet
    size: tuple[int, float]


class Model(BaseModel):
    name: str
    legs: Literal[2, 4]
    parent: Model | None = None


def test_hints_become_schemas() -> None:
    text = {"type": "string"}
    for hint, schema in {
        str: text,
        int | None: {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        list[bool]: {"type": "array", "items": {"type": "boolean"}},
        dict[str, float]: {"type": "object", "additionalProperties": {"type": "number"}},
        Literal["a", 1, None]: {"enum": ["a", 1, None]},
        Mood: {"enum": ["glad", "sad"]},
        tuple[str, ...]: {"type": "array", "items": text},
    }.items():
        assert schema_of(hint) == schema
    schema = schema_of(Owner)
    assert schema["$ref"] == "#/$defs/Owner"
    pet = schema["$defs"]["Pet"]
    assert pet["required"] == ["name", "moods"]
    assert pet["properties"]["friend"] == {"anyOf": [{"$ref": "#/$defs/Pet"}, {"type": "null"}]}
    jsonschema.validate({"pet": {"name": "Tim", "moods": ["glad"]}, "size": [1, 2.5]}, schema)
    for bad in (object, dict[int, str], set[str], Literal[b"x"], 5):
        with pytest.raises(UsageError, match="no JSON schema"):
            schema_of(bad)


def test_shapes_are_plain() -> None:
    for given in (Model, Pet, Owner, {"type": "integer"}, '{"type": "integer"}', list[int]):
        found = shape(json_schema=given)
        assert pickle.loads(pickle.dumps(found)) == found
        assert found.name == "json_schema"
    assert shape_of() is None


DEEP: dict[str, Any] = {"type": "integer"}
for _ in range(70):
    DEEP = {"type": "array", "items": DEEP}
LOOP = {"$ref": "#"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"regex": "a", "choices": ["b"]}, "regex and choices exclude"),
    ({"json_object": 1}, "json_object is 1"),
    ({"json_schema": 5}, "5 has no JSON schema"),
    ({"json_schema": "{"}, "not JSON"),
    ({"json_schema": "[" * 200_001}, "json_schema has 200001 characters"),
    ({"json_schema": "[1]"}, "json_schema is"),
    ({"json_schema": {"a": {1, 2}}}, "not JSON"),
    ({"json_schema": {"type": "strng"}}, "strng"),
    ({"json_schema": {"propertes": {}}}, "'propertes' at #"),
    ({"json_schema": {"properties": {"a": {"uniqueItems": True}}}}, "'uniqueItems' at #/properties/a"),
    ({"json_schema": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "oneOf"),
    ({"json_schema": {"type": "string", "format": "shape"}}, "shape"),
    ({"json_schema": {"type": "string", "pattern": "(?=a)a"}}, "look-around"),
    ({"json_schema": {"type": "string", "pattern": "((a{100}){100}){100}"}}, "too large"),
    ({"json_schema": {"type": "integer", "multipleOf": 1000003}}, "multipleOf"),
    ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}}, "minimum"),
    ({"json_schema": {"$ref": "#/$defs/none"}}, "none"),
    ({"json_schema": {"$ref": "https://example.org/a"}}, "example.org"),
    ({"json_schema": LOOP}, "never ends"),
    ({"json_schema": {"type": "object", "properties": {"a": LOOP}, "required": ["a"]}}, "never ends"),
    ({"json_schema": {"type": "array", "items": LOOP, "minItems": 1}}, "never ends"),
    ({"json_schema": {"anyOf": [LOOP, {"type": "array", "prefixItems": [LOOP], "minItems": 1}]}}, "never ends"),
    ({"json_schema": DEEP}, "deeply nested"),
    ({"json_schema": {"properties": {f"p{i}": {} for i in range(10_000)}}}, "too large|characters"),
    ({"regex": 5}, "regex is 5"),
    ({"regex": r"\d(a"}, r"unclosed group: \d(a"),
    ({"regex": r"\ba"}, "not supported"),
    ({"regex": "a\\"}, "ends with a backslash"),
    ({"regex": "(?x)a # b\n c"}, "verbose"),
    ({"regex": "a" * 10**6}, "1000000 characters"),
    ({"regex": "(a{1000}){1000}"}, "too large"),
    ({"regex": "\ud800"}, "whole Unicode"),
    ({"choices": "yes"}, "choices are"),
    ({"choices": []}, "choices are"),
    ({"choices": ["a", ""]}, "choices are"),
    ({"choices": ["a", 5]}, "a choice is 5"),
    ({"choices": ["a"] * 10_001}, "10001 choices"),
    ({"grammar": "start: nothing"}, "nothing"),
    ({"grammar": ""}, "start"),
    ({"grammar": "start: " + "(" * 5000 + '"a"' + ")" * 5000}, "nested"),
    ({"grammar": "start: x\nx[max_tokens=3]: /.*/"}, "max_tokens"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda v: None if isinstance(v, dict) else v[:20])
def test_what_cannot_be_a_shape_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message).replace(r"\|", "|")) as refused:
        shape_of(**options)
    assert len(str(refused.value).splitlines()) <= 3


@pytest.mark.slow
def test_long_chains_of_rules_compile(guides: Guides) -> None:
    """The library compiles them recursively, deeper than a usual stack."""
    chain = "\n".join(f'r{i}: "a" r{i + 1} | "b"' for i in range(4000))
    assert not guides.guide(shape(grammar=f'start: r0\n{chain}\nr4000: "b"')).ended


# --- guides ----------------------------------------------------------------------------------

TEXTS: dict[str, dict[str, Any]] = {
    r"yes| no|maybe / not|日本": {"choices": ["yes", " no", "maybe / not", "日本"]},
    r" ?[a-z]{3,5}( x)?": {"regex": " ?[a-z]{3,5}( x)?"},
    r"ab*c": {"grammar": 'start: "a" x\nx: "b" x | "c"'},
    r"\.\*\(\n\"|x": {"choices": ['.*(\n"', "x"]},
}


@pytest.mark.parametrize("pattern", [r"\d\D", r"\w\W", r"\s\S", r"[a\d][^\w]", r"(?i)\\d\w"])
def test_classes_of_a_regex_match_ascii(pattern: str) -> None:
    ours, characters = re.compile(pattern, re.ASCII), "5٣éa_ \u00a0\\d"
    start = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), shape(regex=pattern).grammar)
    for text in map("".join, [*product(characters, repeat=2), *product(r"\\\\", "dD", characters)]):
        matcher, ids = start.deep_copy(), list(text.encode())
        fits = matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()
        assert fits == bool(ours.fullmatch(text)), text


def test_many_properties_may_be_optional(guides: Guides) -> None:
    properties = {f"p{i}": {"type": "integer"} for i in range(800)}
    guide = guides.guide(shape(json_schema={"type": "object", "properties": properties}))
    masks = empty_masks(1, guides.vocab_size)
    for _ in range(3):
        guide.masks(masks, [])
        guide.take(int(allowed(masks[0])[0]))


def check_texts(tokenizer: Tokenizer) -> None:
    """Random texts match their shapes, exactly as they are returned, also at the beginning of a text."""
    ends = frozenset(sorted(tokenizer.special_ids)[:2])
    found, rng = Guides(tokenizer, size(tokenizer), ends), np.random.default_rng(0)
    for prompt in (tokenizer.encode("Hello"), tokenizer.encode("")[:1]):
        begins = not prompt or prompt[-1] in tokenizer.special_ids
        for pattern, options in TEXTS.items():
            for stops in (ends, ends, frozenset()):
                guide = found.guide(shape(**options), stops, begins=begins)
                made = walk(guide, tokenizer, rng, vocab_size=size(tokenizer), prompt=tuple(prompt))
                assert made.ended
                assert re.fullmatch(pattern, made.text), (pattern, made)


def test_texts_match(bundled: Tokenizer) -> None:
    check_texts(bundled)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["models/stories260k", "tokenizers/llama2"])
def test_texts_of_other_tokenizers_match(shared: Path, folder: str) -> None:
    check_texts(read(shared / folder))


@pytest.mark.parametrize("kind", ["some", pytest.param("all", marks=pytest.mark.slow)])
def test_schemas_hold(bundled: Tokenizer, guides: Guides, kind: str) -> None:
    """Every finished walk is valid JSON of its schema, in the form of json.dumps."""
    assert len(SCHEMAS) == 200
    rng, bias, finished = np.random.default_rng(1), liked(bundled), 0
    names = list(SCHEMAS) if kind == "all" else list(SCHEMAS)[::10]
    for name in names:
        guide = guides.guide(shape(json_schema=SCHEMAS[name]))
        made = walk(guide, bundled, rng, vocab_size=size(bundled), bias=bias, most=300)
        if made.ended:
            finished += 1
            value = json.loads(made.text)
            jsonschema.Draft202012Validator(SCHEMAS[name]).validate(value)
    assert finished >= 0.95 * len(names)


def test_masks(bundled: Tokenizer, guides: Guides) -> None:
    a, b = (bundled.encode(c, special=False)[-1] for c in "ab")
    guide = guides.guide(shape(regex="(a|b)b?"), frozenset({1, 5}))
    masks = empty_masks(3, size(bundled))
    assert guide.masks(masks, [a, b]) == 2  # and the state has not changed
    begin, middle, end = map(bits, masks)
    assert {a, b} <= set(begin)
    assert not {1, 5} & set(begin)
    assert {1, 5, b} <= set(middle)
    assert end == [1, 5]
    masks[:] = 0
    assert guide.masks(masks, [a, a]) == 1
    assert [bits(m) for m in masks] == [begin, middle, []]
    other = guide.copy()
    other.take(a)
    assert (guide.complete, other.complete, other.ended) == (False, True, False)
    with pytest.raises(LlamaGPUError, match=f"Token {a} does not fit"):
        other.copy().take(a)
    other.take(5)
    assert other.ended
    with pytest.raises(LlamaGPUError, match="does not fit"):
        guide.take(1)


def test_without_stop_ids_a_text_ends_when_nothing_can_follow(bundled: Tokenizer, guides: Guides) -> None:
    guide = guides.guide(shape(choices=["yes", "yes!"]), frozenset())
    for token in bundled.encode("yes!", special=False)[-4:]:
        if bundled.token_bytes(token).strip():
            assert not guide.ended
            guide.take(token)
    assert guide.ended
    masks = empty_masks(1, size(bundled))
    assert guide.masks(masks, []) == 0
    assert bits(masks[0]) == [0]  # no row is empty


def test_forced_tokens_do_not_depend_on_how_many_are_asked_for(bundled: Tokenizer, guides: Guides) -> None:
    wanted = shape(json_schema={"const": {"first": "forced text", "second": [1, 2, 3]}})
    made = []
    for most in (0, 1, 2, 5, 100):
        rng = np.random.default_rng(2)
        made.append(walk(guides.guide(wanted), bundled, rng, vocab_size=size(bundled), guesses=most))
    assert json.loads(made[0].text) == {"first": "forced text", "second": [1, 2, 3]}
    assert all(m.ids == made[0].ids for m in made)


def letters(*tokens: str, decoder: Any = None) -> Tokenizer:
    """A tokenizer of these tokens."""
    vocab = {"<end>": 0} | {t: i + 1 for i, t in enumerate(tokens)}
    made = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<end>"))
    made.decoder = decoder or decoders.Fuse()
    made.add_special_tokens(["<end>"])
    return Tokenizer(made.to_str(), {}, 100)


def test_a_vocabulary_that_cannot_spell_the_shape_is_refused() -> None:
    guides = Guides(letters(*"abc"), 64, [0])
    for options, missing in (
        ({"json_object": True}, "'{'"),
        ({"choices": ["ab", "abd"]}, "'d'"),
        ({"regex": "d+"}, "No token"),
        ({"json_schema": {"enum": ["abc", "d"]}}, "'d'"),
    ):
        with pytest.raises(UsageError, match=f"(?s)cannot write {next(iter(options))}.*{missing}"):
            guides.guide(shape(**options))
    guide = guides.guide(shape(regex="abd|abcd"))
    masks = empty_masks(1, 64)
    for token in (1, 2):
        guide.masks(masks, [])
        guide.take(token)
    guide.take(3)  # what must follow cannot be spelled
    with pytest.raises(LlamaGPUError, match="No token of the model continues"):
        guide.masks(masks, [])


def test_decoders_that_change_the_text_are_refused() -> None:
    spaced = letters("a</w>", "b", "c</w>", decoder=decoders.BPEDecoder())  # a space, but not at the end
    with pytest.raises(UsageError, match="does not work with structured output"):
        Guides(spaced, 64, [0]).guide(shape(regex="a"))


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UsageError, match=r"pip install 'llamagpu\[guided\]'"):
        shape_of(regex="never compiled before")


# --- models ----------------------------------------------------------------------------------


def test_generation(story: LLM) -> None:
    prompt = "Once upon a time"
    result = story.generate(prompt, json_schema=Toy, max_tokens=30, temperature=1.0, seed=3)
    assert result.finish_reason == "stop"
    jsonschema.validate(json.loads(result.text), schema_of(Toy))
    cut = story.generate(prompt, regex="[a-z]{200}", max_tokens=5)
    assert cut.finish_reason == "length"
    rows: list[Any] = [
        {"prompt": "One day", "choices": ["cat", "dog"]},
        "The",
        {"prompt": "A", "json_object": True, "stop": ":"},
    ]
    (one, two), (free, _), (stopped, _) = story.generate(rows, n=2, max_tokens=8, temperature=0.9, seed=5)
    assert {one.text, two.text} <= {"cat", "dog"}
    assert free.text == story.generate("The", max_tokens=8, temperature=0.9, seed=5).text
    assert ":" not in stopped.text
    ended = story.generate(prompt, choices=["cat", "cats"], ignore_eos=True)
    assert (ended.text, ended.finish_reason) == ("cats", "stop")
    assert "".join(story.stream(prompt, choices=["a b"])) == "a b"
    with pytest.raises(UsageError, match="regex and choices exclude"):
        story.generate(prompt, regex="a", choices=["b"])


@pytest.mark.slow
def test_schemas_hold_for_a_model(story: LLM) -> None:
    """The bundled model's texts in batches, greedy and sampled."""
    names = list(SCHEMAS)[::12]
    rows: list[Any] = [{"prompt": "Once upon a time", "json_schema": SCHEMAS[n]} for n in names]
    finished = 0
    for settings in ({}, {"temperature": 1.0, "seed": 1}):
        for name, result in zip(names, story.generate(rows, max_tokens=60, **settings), strict=True):
            if result.finish_reason == "stop":
                finished += 1
                jsonschema.Draft202012Validator(SCHEMAS[name]).validate(json.loads(result.text))
            else:
                assert result.finish_reason == "length"
    assert finished > len(names)
