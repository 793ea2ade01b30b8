"""Files that nobody should trust: mutants, pickles, and what is no file at all, through the real entry points.

``scripts/fuzz_files.py`` runs far more mutants.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import hostile
import hostile_templates
import pytest

from llamagpu.errors import LlamaGPUError, ModelNotFoundError, UnsupportedModelError, UsageError
from llamagpu.model import find_model
from llamagpu.model.sources.files import MOST_JSON, load_json, read_bytes, read_text
from llamagpu.model.sources.safetensors import read_header
from llamagpu.text import ChatTemplate, Tokenizer

Open = Callable[[Path], None]
LLAMA = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "tokenizer.model", "chat_template.jinja", "additional_chat_templates/a.jinja"),
    *("model.safetensors.index.json", "model-00001-of-00002.safetensors"),
)
ENCODER = (
    *("config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", "2_Dense/config.json"),
    *("2_Dense/model.safetensors", "config_sentence_transformers.json", "sentence_bert_config.json"),
    *("model.safetensors",),
)
FILES = [(hostile.open_llm, name) for name in LLAMA] + [(hostile.open_embedder, name) for name in ENCODER]


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with hostile.without_device():
        yield


def whole(folder: Path, opens: Open) -> Path:
    return hostile.write_llama(folder / "m") if opens is hostile.open_llm else hostile.write_encoder(folder / "m")


@pytest.mark.filterwarnings("ignore")
def test_good_models_open(tmp_path: Path) -> None:
    """What the mutants are made of is right."""
    hostile.open_llm(hostile.write_llama(tmp_path / "llama"))
    hostile.open_embedder(hostile.write_encoder(tmp_path / "bert"))
    hostile.open_classifier(hostile.write_encoder(tmp_path / "classifier", labels=1))
    for architecture in ("llama", "gemma2", "gemma3", "granite", "smollm3"):
        hostile.open_llm(hostile.write_gguf(tmp_path, architecture))


@pytest.mark.parametrize("count", [3, pytest.param(300, marks=pytest.mark.slow)])
def test_mutants(tmp_path: Path, count: int) -> None:
    """Each opens, or is refused by one of our errors, within 1 s and 64 MB."""
    found = []
    for opens in (hostile.open_llm, hostile.open_embedder):
        folder = whole(tmp_path / opens.__name__, opens)
        for name in (n for o, n in FILES if o is opens and n.endswith(".json") and (folder / n).exists()):
            copies = hostile.mutants((folder / name).read_bytes(), count, seed=count)
            found += [(name, o.complaint) for o in hostile.replaced(folder, name, copies, opens)]
    file = hostile.write_gguf(tmp_path)
    copies = hostile.mutants(file.read_bytes(), count, seed=count)
    found += [("gguf", o.complaint) for o in hostile.replaced(file, "", copies, hostile.open_llm)]
    assert len(found) > 10 * count
    assert not [pair for pair in found if pair[1]]


@pytest.mark.parametrize("count", [60, pytest.param(5000, marks=pytest.mark.slow)])
def test_mutants_of_safetensors_headers(tmp_path: Path, count: int) -> None:
    path = hostile.write_encoder(tmp_path / "m") / "model.safetensors"
    copies = hostile.header_mutants(path.read_bytes(), count, seed=count)
    found = [o.complaint for o in hostile.replaced(path, "", copies, read_header)]
    assert not [complaint for complaint in found if complaint]


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_expressions_of_templates(count: int) -> None:
    """Within 2 s and 256 MB, and without a look at Python's inside."""
    for source in hostile_templates.sources(count, seed=count):
        outcome = hostile.outcome(lambda source=source: hostile_templates.render(source))
        assert not hostile_templates.complaint(outcome), source


# --- no files ------------------------------------------------------------------------------


def put(kind: str, path: Path) -> None:
    """Something in place of a file."""
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            here = os.getcwd()
            os.chdir(path.parent)  # addresses are short
            try:
                made.bind(path.name)
            finally:
                os.chdir(here)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nothing")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text("{}")
        path.chmod(0)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has none of these files")
@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "loop", "dangling", "folder", "unreadable"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    """In place of any file that is read; a link that leads nowhere is not a file that is missing."""
    if kind == "unreadable" and os.geteuid() == 0:
        pytest.skip("root reads every file")
    for number, (opens, name) in enumerate(FILES):
        folder = whole(tmp_path / str(number), opens)
        if name == "tokenizer.model":
            (folder / "tokenizer.json").unlink()
        if name == "additional_chat_templates/a.jinja":
            (folder / "chat_template.jinja").write_text(hostile.TEMPLATE)
        if name == "added_tokens.json":
            assert "added_tokens_decoder" not in json.loads((folder / "tokenizer_config.json").read_text())
        put(kind, folder / name)
        begin = time.monotonic()
        with pytest.raises((UnsupportedModelError, ModelNotFoundError)) as caught:
            opens(folder)
        assert time.monotonic() - begin < 5  # a read of such a file would wait for ever
        assert Path(name).name in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has none of these files")
@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "loop", "dangling"])
def test_what_is_no_gguf_file(tmp_path: Path, kind: str) -> None:
    put(kind, tmp_path / "a.gguf")
    with pytest.raises((UnsupportedModelError, ModelNotFoundError)):
        hostile.open_llm(tmp_path / "a.gguf")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
def test_pickles_are_never_opened(tmp_path: Path, name: str) -> None:
    """The error says how to convert them."""
    folder = hostile.write_llama(tmp_path / "m")
    for path in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        path.unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch RUN'\ntR.")
    for given in (folder, folder / name):
        with pytest.raises(UnsupportedModelError, match="save_pretrained"):
            hostile.open_llm(given)


def test_names_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("a")
    for name in ("a" * 5000, "a/" + "b" * 5000, "~nobody-of-this-name/x", "a\0b", str(tmp_path / "a"), "/dev/zero"):
        with pytest.raises(ModelNotFoundError):
            find_model(name)


# --- single findings -----------------------------------------------------------------------


def test_files_beyond_their_bounds(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b" " * (MOST_JSON + 1))
    with pytest.raises(UnsupportedModelError, match="more than"):
        load_json(path)
    with pytest.raises(UnsupportedModelError, match="more than"):
        read_bytes(path, 10)
    path.write_bytes(b"\xff")
    with pytest.raises(UnsupportedModelError, match="cannot be read"):
        read_text(path)


def header(path: Path, text: str) -> Path:
    path.write_bytes(struct.pack("<Q", len(text.encode())) + text.encode())
    return path


@pytest.mark.parametrize(
    "entry",
    [
        '"dtype": [], "shape": [1], "data_offsets": [0, 4]',
        '"dtype": "F32", "shape": [' + ",".join(["9" * 4300] * 1000) + '], "data_offsets": [0, 4]',
        '"dtype": "F32", "shape": [' + ",".join(["9" * 30] * 100_000) + '], "data_offsets": [0, 4]',
        '"dtype": "F32", "shape": {}, "data_offsets": [0, 4]',
        '"dtype": "F32", "shape": [true], "data_offsets": [0, 4]',
    ],
)
def test_safetensors_entries(tmp_path: Path, entry: str) -> None:
    """Each is refused in little time, and with a short message."""
    name = "\\u001b[2J" + "n" * 100_000
    path, begin = header(tmp_path / "a.safetensors", f'{{"{name}": {{{entry}}}}}'), time.process_time()
    with pytest.raises(UnsupportedModelError) as caught:
        read_header(path)
    assert time.process_time() - begin < 1
    assert len(str(caught.value)) < 1000
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("tokenizer_config.json", [], "JSON object"),
        ("tokenizer_config.json", {"chat_template": ["x", 3]}, "chat_template"),
        ("tokenizer_config.json", {"chat_template": {"default": "x"}}, "chat_template"),
        ("generation_config.json", {"do_sample": True, "temperature": 10**400}, "401 digits"),
        ("config.json", {"model_type": []}, "model_type"),
        ("model.safetensors.index.json", {"weight_map": {"a": "../b.safetensors"}}, "not a file of this directory"),
        ("model.safetensors.index.json", {"weight_map": {"a": "a\0b"}}, "not a file of this directory"),
    ],
)
def test_files_of_a_directory(tmp_path: Path, name: str, value: object, why: str) -> None:
    folder = hostile.write_llama(tmp_path / "m")
    (folder / name).write_text(json.dumps(value))
    with pytest.raises(UnsupportedModelError, match=why):
        hostile.open_llm(folder)


def test_odd_special_tokens_are_none(tmp_path: Path) -> None:
    folder = hostile.write_llama(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(
        '{"bos_token": [], "additional_special_tokens": [[], {"content": 3}]}'
    )
    (folder / "added_tokens.json").write_text('{"<a>": [], "<b>": {"a": 1}}')
    hostile.open_llm(folder)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("modules.json", [{"type": "a.Pooling", "path": "../1_Pooling"}], "not a folder of this model"),
        ("modules.json", [{"type": "a.Pooling", "path": "/etc"}], "not a folder of this model"),
        ("modules.json", [{"type": "a.Transformer", "path": ""}] * 10_000, "modules"),
        ("config_sentence_transformers.json", {"prompts": []}, None),
        ("config_sentence_transformers.json", {"prompts": "x"}, "prompts"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "x"}, "similarity_fn_name"),
        ("config_sentence_transformers.json", {"default_prompt_name": []}, "default_prompt_name"),
        ("sentence_bert_config.json", {"max_seq_length": "x"}, "max_seq_length"),
        ("sentence_bert_config.json", {"do_lower_case": "no"}, "do_lower_case"),
    ],
)
def test_files_of_sentence_transformers(tmp_path: Path, name: str, value: object, why: str | None) -> None:
    folder = hostile.write_encoder(tmp_path / "m")
    (folder / name).write_text(json.dumps(value))
    if why is None:
        hostile.open_embedder(folder)
        return
    with pytest.raises(UnsupportedModelError, match=why):
        hostile.open_embedder(folder)


def test_dense_layers_that_do_not_fit(tmp_path: Path) -> None:
    folder = hostile.write_encoder(tmp_path / "m")
    (folder / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}'
    )
    with pytest.raises(UnsupportedModelError, match="after 32 elements"):
        hostile.open_embedder(folder)


def test_a_panic_of_the_tokenizers_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no Exception, and becomes our error; an interrupt passes."""
    text = (hostile.write_llama(tmp_path / "m") / "tokenizer.json").read_text()
    for kind, expected in ((type("PanicException", (BaseException,), {}), LlamaGPUError), (KeyboardInterrupt,) * 2):

        def from_str(given: str, kind: type[BaseException] = kind) -> None:
            raise kind("index out of bounds")

        monkeypatch.setattr("tokenizers.Tokenizer", type("T", (), {"from_str": staticmethod(from_str)}))
        with pytest.raises(expected):
            Tokenizer(text, {}, 200)


@pytest.mark.parametrize(
    "source",
    [
        "{% break %}",
        "{% for a in messages %}" * 25 + "{% endfor %}" * 25,
        "{% if a %}" * 110 + "{% endif %}" * 110,
        "{{ " + "1" * 5000 + " }}",
        "{{ " + "(" * 20_000 + " }}",
        "x" * 100_000,
    ],
)
def test_templates_that_do_not_compile(source: str) -> None:
    with pytest.raises(UnsupportedModelError, match="not valid"):
        ChatTemplate(source, {})


@pytest.mark.parametrize(
    "source",
    [
        "{{ [1] | slice(1000000000) | list | length }}",
        "{{ [1] | batch(1000000000, 0) | list | length }}",
        "{{ 1.5 | round(999999999, 'ceil') }}",
        "{{ ('a' | safe).ljust(9999999999) }}",
        "{{ 'a'.encode().ljust(9999999999) }}",
        "{{ (5).to_bytes(9999999999, 'big') }}",
        "{{ ('{0}' * 9999).format('b' * 99999) }}",
        "{{ ('b' * 99999).join(range(99999) | map('string')) }}",
        "{{ ('a' * 9999).translate({97: 'b' * 99999}) }}",
        "{% set n = namespace(x=(1,)) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set a %}{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endset %}",
        "{% set n = namespace(x=[], y=[]) %}{% for i in range(70) %}{% set n.x = [n.x, n.x] %}"
        "{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}",
        "{% set n = namespace(x=[]) %}{% for i in range(999) %}{% set n.x = [n.x, 'b' * (3999000 + i)] %}{% endfor %}",
        "{% set x = 'b' * 3999999 %}{{ " + " ~ ".join(["x"] * 500) + " }}",
        "{% set x = 'b' * 3999999 %}{{ (" + " + ".join(["x"] * 100) + ") | length }}",
    ],
)
def test_templates_that_eat_memory(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is stopped."""
    monkeypatch.setattr("llamagpu.text.limits.MOST_SECONDS", 0.5)
    outcome = hostile.outcome(lambda: stopped(source))
    assert not hostile_templates.complaint(outcome)


def stopped(source: str) -> None:
    with pytest.raises(UsageError):
        hostile_templates.render(source)


@pytest.mark.slow
def test_inspect_of_a_pipe_ends(tmp_path: Path) -> None:
    """As a user meets it: an error of three lines, and no traceback."""
    folder = hostile.write_llama(tmp_path / "m")
    if sys.platform != "win32":
        put("pipe", folder / "config.json")
        command = [sys.executable, "-m", "llamagpu", "inspect", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 4
        assert "not a regular file" in done.stderr
        assert "Traceback" not in done.stderr


def test_mutants_are_the_same_everywhere(tmp_path: Path) -> None:
    data = hostile.TEMPLATE.encode()
    first, again = (list(islice(hostile.mutants(data, 20, 3), 20)) for _ in range(2))
    assert first == again


def test_security_names_tests_that_exist() -> None:
    root = Path(__file__).parent
    text = (root.parent / "SECURITY.md").read_text()
    known = "".join(path.read_text() for path in root.glob("test_*.py"))
    names = re.findall(r"`(test_\w+)`", text)
    assert len(names) > 20
    assert not [name for name in names if f"def {name}(" not in known]
    assert all((root / name).exists() for name in re.findall(r"`(test_\w+\.py)`", text))


def test_only_one_module_opens_the_files_of_models() -> None:
    package = Path(__file__).parent.parent / "llamagpu"
    opening = re.compile(r"\.(open|read_text|read_bytes)\(|(?<![\w.])open\(|memmap")
    for path in (*(package / "model").rglob("*.py"), *(package / "text").rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if name in ("model/sources/files.py", "model/quantize.py", "model/merge.py") or name.startswith("model/hub/"):
            continue  # files that are written, and the hub's own records
        assert not opening.search(path.read_text()), path
