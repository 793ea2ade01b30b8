"""Jobs over data sets: inputs, outputs, errors, and resuming after a kill at any point."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import random_models

from llamagpu import LLM, jobs
from llamagpu.cli.main import run as run_here
from llamagpu.errors import DeviceLostError, LlamaGPUError, UsageError
from llamagpu.jobs.generation import row_seed
from llamagpu.model import prepare
from llamagpu.model.fingerprint import fingerprint

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def lengths(values: list[dict[str, Any]]) -> list[jobs.Outcome]:
    """A function of a batch that needs no model. An empty prompt spoils the whole batch."""
    if any(v["prompt"] == "" for v in values):
        raise UsageError("The prompt is empty.")
    return [{"length": len(v["prompt"])} for v in values]


def length_job(version: int = 1, size: int = 3) -> jobs.Batches:
    columns = {"length": "int64"}
    return jobs.Batches(
        lengths, name="lengths", inputs=("prompt",), columns=columns, identity={"version": version}, size=size
    )


def write(path: Path, rows: list[Any]) -> Path:
    """Rows as JSON Lines, or as Parquet."""
    if path.suffix == ".parquet":
        names = dict.fromkeys(name for row in rows for name in row)
        table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
        parquet.write_table(table, path, row_group_size=4)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


PROMPTS = [{"prompt": "x" * (i % 7 + 1), "id": i} for i in range(11)]


# --- inputs and outputs ---------------------------------------------------------------------


@pytest.mark.parametrize("source", ["in.jsonl", "in.parquet"])
@pytest.mark.parametrize("output", ["out.jsonl", "out.parquet"])
def test_formats(source: str, output: str, tmp_path: Path) -> None:
    write(tmp_path / source, PROMPTS)
    done = jobs.run(length_job(), tmp_path / source, tmp_path / output)
    assert done == jobs.Summary(rows=11, errors=0, resumed=0)
    got = [(row["row"], row["length"], row.get("error")) for row in read(tmp_path / output)]
    assert got == [(i + 1, i % 7 + 1, None) for i in range(11)]
    assert {p.name for p in tmp_path.iterdir()} == {source, output, f"{output}.job"}


def test_lines_of_text(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"\xef\xbb\xbfone\r\nthree\n\nsix six\n\n\n")
    done = jobs.run(length_job(), tmp_path / "in.txt", tmp_path / "out.jsonl", errors="skip")
    assert (done.rows, done.errors) == (4, 1)
    rows = read(tmp_path / "out.jsonl")
    assert [row.get("length") for row in rows] == [3, 5, None, 7]
    assert rows[2] == {"row": 3, "error": "The prompt is empty."}


@pytest.mark.parametrize("output", ["out.jsonl", "out.parquet"])
def test_an_empty_input_gives_an_empty_output(output: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n")
    for _ in range(2):
        assert jobs.run(length_job(), tmp_path / "in.jsonl", tmp_path / output).rows == 0
        assert read(tmp_path / output) == []


def test_rows_that_cannot_be_read(tmp_path: Path) -> None:
    lines = [b'{"prompt": "a"}', b"{nonsense", b"[1]", b"", b"\xff", b"[" * 100_000, b'{"prompt": "ab"}']
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(UsageError, match=r"(?s)Row 2 of in.jsonl: The line is not JSON.*--errors skip"):
        jobs.run(length_job(), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert [row["length"] for row in read(tmp_path / "out.jsonl")] == [1]
    done = jobs.run(length_job(), tmp_path / "in.jsonl", tmp_path / "out.jsonl", errors="skip")
    assert (done.rows, done.errors, done.resumed) == (7, 5, 1)
    rows = read(tmp_path / "out.jsonl")
    assert [row.get("length") for row in rows] == [1, None, None, None, None, None, 2]
    for row, word in zip(rows[1:6], ("not JSON", "not a JSON object", "empty", "UTF-8", "not JSON"), strict=True):
        assert word in row["error"]


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("nowhere.jsonl", "out.jsonl", "no input file"),
        ("in.csv", "out.jsonl", "format of in.csv is not known"),
        (".", "out.jsonl", "is a directory"),
        ("broken.parquet", "out.jsonl", "cannot be read as Parquet"),
        ("other.parquet", "out.jsonl", "no column prompt"),
        ("in.jsonl", "out.csv", "format of out.csv is not known"),
        ("in.jsonl", "nowhere/out.jsonl", "no directory"),
        ("in.jsonl", "folder.jsonl", "is a directory"),
        ("in.jsonl", "in.jsonl", "is the input"),
        ("in.jsonl", "used.jsonl", "exists already"),
    ],
)
def test_wrong_paths(source: str, output: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", PROMPTS)
    write(tmp_path / "other.parquet", [{"text": "a"}])
    (tmp_path / "in.csv").write_text("prompt\na\n")
    (tmp_path / "broken.parquet").write_text("PAR1 and more")
    (tmp_path / "used.jsonl").write_text("mine\n")
    (tmp_path / "folder.jsonl").mkdir()
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(UsageError, match=message):
        jobs.run(length_job(), tmp_path / source, tmp_path / output)
    assert {p: p.read_bytes() for p in before} == before


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", PROMPTS)
    with pytest.raises(LlamaGPUError, match="No space left"):
        jobs.run(length_job(), tmp_path / "in.jsonl", "/dev/full")
    with pytest.raises(UsageError, match="errors is 'ignore'"):
        jobs.run(length_job(), tmp_path / "in.jsonl", tmp_path / "out.jsonl", errors="ignore")
    with filelock.FileLock(tmp_path / "out.jsonl.lock"), pytest.raises(UsageError, match="being written"):
        jobs.run(length_job(), tmp_path / "in.jsonl", tmp_path / "out.jsonl")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in.jsonl", PROMPTS)
    write(tmp_path / "in.parquet", PROMPTS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for source, output in (("in.jsonl", "out.parquet"), ("in.parquet", "out.jsonl")):
        with pytest.raises(UsageError, match=r"llamagpu\[parquet\]"):
            jobs.run(length_job(), tmp_path / source, tmp_path / output)


# --- resuming -------------------------------------------------------------------------------


def test_another_job_is_refused(tmp_path: Path) -> None:
    source, output = write(tmp_path / "in.jsonl", PROMPTS), tmp_path / "out.jsonl"
    jobs.run(length_job(), source, output)
    assert jobs.run(length_job(), source, output).resumed == 11  # complete: it does nothing
    before = output.read_bytes()
    with pytest.raises(UsageError, match="version was 1, is 2"):
        jobs.run(length_job(2), source, output)
    write(source, PROMPTS[1:])
    with pytest.raises(UsageError, match="Changed: the content of the input"):
        jobs.run(length_job(), source, output)
    assert output.read_bytes() == before
    assert jobs.run(length_job(), source, output, overwrite=True) == jobs.Summary(10, 0, 0)


def test_a_first_row_that_was_corrected_needs_no_overwrite(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": ""}])
    with pytest.raises(UsageError, match="Row 1"):
        jobs.run(length_job(), source, tmp_path / "out.jsonl")
    write(source, [{"prompt": "a"}])
    assert jobs.run(length_job(), source, tmp_path / "out.jsonl").errors == 0


def test_changed_outputs_are_refused(tmp_path: Path) -> None:
    source, output = write(tmp_path / "in.jsonl", [*PROMPTS, {"prompt": ""}]), tmp_path / "out.jsonl"
    with pytest.raises(UsageError, match="Row 12"):
        jobs.run(length_job(), source, output)
    lines = output.read_bytes().splitlines(keepends=True)
    for changed in (lines[1:], lines[:3] + lines[4:], [*lines, lines[0]], [*lines[:2], b"oh\n", *lines[3:]]):
        output.write_bytes(b"".join(changed))
        with pytest.raises(UsageError, match="Something else has changed the file"):
            jobs.run(length_job(), source, output)
        assert output.read_bytes() == b"".join(changed)
    (tmp_path / "out.jsonl.job").write_text("{}")
    with pytest.raises(UsageError, match="state"):
        jobs.run(length_job(), source, output)


def test_a_line_that_a_kill_tore_is_written_again(tmp_path: Path) -> None:
    """The output cut at every byte."""
    source, output = write(tmp_path / "in.jsonl", PROMPTS[:4]), tmp_path / "out.jsonl"
    state = tmp_path / "out.jsonl.job"
    jobs.run(length_job(), source, output)
    whole, facts = output.read_bytes(), json.loads(state.read_text())
    state.write_text(json.dumps({"identity": facts["identity"]}))
    killed = state.read_bytes()
    for end in range(len(whole)):
        output.write_bytes(whole[:end])
        state.write_bytes(killed)
        assert jobs.run(length_job(), source, output).resumed == whole[:end].count(b"\n")
        assert output.read_bytes() == whole


class Killed(BaseException):
    """What stands for a kill inside this process."""


def vector_job() -> jobs.Batches:
    """Vectors of one element, the length. The first prompts have the lengths 1, 2, 3 …"""
    return jobs.Batches(
        lambda rows: [{"v": np.array([len(row["prompt"])], np.float32)} for row in rows],
        name="vectors",
        inputs=("prompt",),
        columns={"v": "float32[1]"},
    )


@pytest.mark.parametrize("output", ["out.jsonl", "out.parquet", "out.npy"])
def test_a_kill_between_any_two_steps(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before every write to the disk in turn: fsync, replace, unlink, a row."""
    source, path = write(tmp_path / "in.jsonl", PROMPTS[:5]), tmp_path / output
    job = vector_job if output == "out.npy" else length_job
    left = 0

    def rows() -> list[int]:
        if output == "out.npy":
            return np.load(path)[:, 0].tolist()
        return [row["row"] for row in read(path)]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return real(*arguments, **options)

        return step

    monkeypatch.setattr("llamagpu.jobs.target.os.fsync", counted(os.fsync))
    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
    monkeypatch.setattr(jobs.output.Journal, "append", counted(jobs.output.Journal.append))
    for steps in range(1, 100):
        left = steps
        try:
            jobs.run(job(), source, path, overwrite=not path.exists())
            break
        except Killed:
            pass
        left = 0
        jobs.run(job(), source, path)
        assert rows() == [1, 2, 3, 4, 5]
        left = 0
        for file in tmp_path.glob("out*"):
            file.unlink()
    assert steps > 10
    assert rows() == [1, 2, 3, 4, 5]


MEMORY = """
import sys, psutil
from llamagpu import jobs
job = jobs.Batches(lambda rows: [{"length": len(r["prompt"])} for r in rows], name="lengths", inputs=("prompt",),
                   columns={"length": "int64"})
used = []
def progress(done, total):
    if done % 10_000 == 0:
        used.append(psutil.Process().memory_info().rss)
assert jobs.run(job, *sys.argv[1:], progress=progress).rows == 100_000
print(max(used) / used[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize("source", ["in.jsonl", "in.parquet"])
@pytest.mark.parametrize("output", ["out.jsonl", "out.parquet"])
def test_memory_does_not_grow(source: str, output: str, tmp_path: Path) -> None:
    """100,000 rows; the resident set after 10,000 of them and at most later."""
    write(tmp_path / source, [{"prompt": f"The short text number {i}."} for i in range(100_000)])
    arguments = [sys.executable, "-c", MEMORY, str(tmp_path / source), str(tmp_path / output)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.02
    assert [row["row"] for row in read(tmp_path / output)] == list(range(1, 100_001))


# --- generation -----------------------------------------------------------------------------


ROWS: list[dict[str, Any]] = [
    {"prompt": "Once upon a time", "max_tokens": 5},
    {"prompt": "The sun", "temperature": 0.9, "top_k": 20},
    {"prompt": "The sun", "temperature": 0.9, "seed": 3, "stop": [".", "a"]},
    {"messages": [{"role": "user", "content": "There was a cat."}]},
    {"prompt": [1, 300, 301], "logit_bias": {"310": 100.0}},
    {"prompt": "Tom", "repetition_penalty": 1.3, "ignore_eos": True},
]


def alone(llm: LLM, row: dict[str, Any], number: int) -> str:
    """The text of a row by a call of its own."""
    options = {"max_tokens": 8, "seed": row_seed(0, str(number))} | row
    messages, prompt = options.pop("messages", None), options.pop("prompt", None)
    if "logit_bias" in options:
        options["logit_bias"] = {int(k): v for k, v in options["logit_bias"].items()}
    return llm.generate(prompt if messages is None else llm.apply_chat_template(messages), **options).text


@pytest.mark.parametrize("source", ["in.jsonl", "in.parquet"])
def test_rows_are_generated_as_alone(source: str, story: LLM, tmp_path: Path) -> None:
    rows = [row for row in ROWS if source == "in.jsonl" or isinstance(row.get("prompt", ""), str)]
    write(tmp_path / source, rows * 6)
    jobs.run(jobs.Generation(story, max_tokens=8), tmp_path / source, tmp_path / "out.jsonl")
    got = [row["generated_text"] for row in read(tmp_path / "out.jsonl")]
    assert got == [alone(story, row, number) for number, row in enumerate(rows * 6, start=1)]
    assert got[1] != got[len(rows) + 1]  # the same row elsewhere has a draw of its own


def test_bad_rows_of_a_generation(story: LLM, tmp_path: Path) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"prompt": ""}, "The prompt is empty"),
        ({"prompt": None}, "The column prompt is null"),
        ({"promt": "x"}, "no column prompt or messages. The columns are: promt"),
        ({"prompt": 5}, "must be text, a list of token ids, or messages"),
        ({"prompt": ["a", "b"]}, "is not a token id"),
        ({"prompt": [10**9]}, "not a token id of this model"),
        ({"prompt": "\ud800"}, "is not text"),
        ({"prompt": "word " * 600}, "the context holds 512"),
        ({"prompt": "x", "messages": []}, "a prompt and messages"),
        ({"messages": []}, "must be text, a list of token ids, or messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "king"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens is 0"),
        ({"prompt": "x", "temperature": "hot"}, "temperature is 'hot'"),
        ({"prompt": "x", "logit_bias": {"x": 1}}, "logit_bias"),
    ]
    good = {"prompt": "The sun"}
    source = write(tmp_path / "in.jsonl", [row for one, _ in bad for row in (one, good)])
    job = jobs.Generation(story, max_tokens=2)
    done = jobs.run(job, source, tmp_path / "out.jsonl", errors="skip")
    assert (done.rows, done.errors) == (2 * len(bad), len(bad))
    rows = read(tmp_path / "out.jsonl")
    assert {row["generated_text"] for row in rows[1::2]} == {story.generate("The sun", max_tokens=2).text}
    for row, (_, message) in zip(rows[::2], bad, strict=True):
        assert message in row["error"]
    with pytest.raises(UsageError, match="no logprobs"):
        jobs.Generation(story, logprobs=2)
    with pytest.raises(UsageError, match="top_p"):
        jobs.Generation(story, top_p=2)


def test_other_models_and_settings_are_refused(story: LLM, tmp_path: Path) -> None:
    source, output = write(tmp_path / "in.jsonl", [{"text": "The sun"}]), tmp_path / "out.jsonl"
    jobs.run(jobs.Generation(story, "text", max_tokens=2), source, output)
    for settings, message in (
        ({"max_tokens": 3}, "settings max_tokens was 2, is 3"),
        ({"max_tokens": 2, "stop": "."}, "settings stop was None, is '.'"),
    ):
        with pytest.raises(UsageError, match=message):
            jobs.run(jobs.Generation(story, "text", **settings), source, output)
    with (
        LLM(device=story.device, dtype="int8", context=64) as other,
        pytest.raises(UsageError, match="model dtype was 'auto', is 'int8'"),
    ):
        jobs.run(jobs.Generation(other, "text", max_tokens=2), source, output)
    shared = LLM(device=story.device, context=64, chat_template="{{ messages }}")
    assert shared.fingerprint != story.fingerprint
    shared.close()
    write(source, [{"text": "The sun"}] * 2)
    with pytest.raises(DeviceLostError):
        jobs.run(jobs.Generation(shared, "text"), source, output, overwrite=True, errors="skip")


def test_fingerprints_are_of_the_content(tmp_path: Path) -> None:
    """The same in another directory; another if a tensor, the config or the tokenizer differs."""
    config = random_models.config()
    tensors = random_models.tensors(config, 1)

    def print_of(name: str, change: Callable[[Path], Any] = lambda path: None) -> str:
        path = random_models.write_model(tmp_path / name, config, tensors)
        change(path)
        return fingerprint(prepare(path))

    def add_key(path: Path, file: str) -> None:
        value = json.loads((path / file).read_text())
        (path / file).write_text(json.dumps(value | {"added": 1}))

    first = print_of("a")
    assert print_of("b") == first
    assert print_of("c", lambda path: add_key(path, "config.json")) != first
    assert print_of("d", lambda path: add_key(path, "tokenizer.json")) != first
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    assert print_of("e") != first


# --- the command ----------------------------------------------------------------------------


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "llamagpu", "generate", "--max-tokens", "20", *arguments]


@pytest.mark.slow
@pytest.mark.parametrize("output", ["out.jsonl", "out.parquet"])
def test_killed_at_three_points_and_resumed(output: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"Once upon a time {i}", "max_tokens": 5 + i % 9, "temperature": i % 3 / 2} for i in range(200)]
    source, path = write(tmp_path / "in.jsonl", rows), tmp_path / output
    journal = tmp_path / "out.parquet.partial" if output == "out.parquet" else path
    arguments = command("--input", str(source), "--output", str(path))
    counts = []
    for _ in range(3):
        enough = (counts[-1] if counts else 0) + 30
        process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
        while not journal.exists() or journal.read_bytes().count(b"\n") < enough:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        counts.append(journal.read_bytes().count(b"\n"))
    assert counts[-1] < 200
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert f"200 rows, {counts[-1]} of them by an earlier run" in done.stderr
    whole = tmp_path / f"whole{path.suffix}"
    once = command("--input", str(source), "--output", str(whole))
    assert subprocess.run(once, capture_output=True, timeout=120, env=ENVIRONMENT).returncode == 0
    assert read(path) == read(whole)
    assert output == "out.parquet" or path.read_bytes() == whole.read_bytes()
    assert [row["row"] for row in read(path)] == list(range(1, 201))


@pytest.mark.slow
def test_control_c_keeps_the_rows(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": f"Once {i}"} for i in range(1000)])
    output = tmp_path / "out.jsonl"
    arguments = command("--input", str(source), "--output", str(output))
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, env=ENVIRONMENT)
    while not output.exists() or not output.stat().st_size:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.decode().splitlines() == [
        "The rows so far are kept. Run the same command again to continue.",
        "interrupted",
    ]
    assert [row["row"] for row in read(output)] == list(range(1, len(read(output)) + 1))


@pytest.mark.slow
def test_standard_input_and_output(tmp_path: Path) -> None:
    data = b'{"prompt": "The sun"}\n{"prompt": ""}\n'
    arguments = command("--input", "-", "--errors", "skip")
    done = subprocess.run(arguments, input=data, capture_output=True, timeout=60, env=ENVIRONMENT)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, [row["row"] for row in rows]) == (0, [1, 2])
    assert "error" in rows[1]
    assert b"2 rows, 1 with an error" in done.stderr
    to_file = [*arguments, "--output", str(tmp_path / "out.jsonl")]
    first, second = (subprocess.run(to_file, input=data, capture_output=True, env=ENVIRONMENT) for _ in range(2))
    assert read(tmp_path / "out.jsonl") == rows
    assert (first.returncode, second.returncode) == (0, 2)
    assert b"nothing can be resumed" in second.stderr


@pytest.mark.slow
def test_usage_and_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(write(tmp_path / "in.jsonl", [{"text": ""}]))
    output = str(tmp_path / "out.jsonl")
    for wrong in (
        ["Once", "--input", source],
        ["--input", source, "--json"],
        ["--input", source, "-f", source],
        ["--output", output],
        ["--errors", "skip", "Once"],
        ["--input", str(tmp_path / "nowhere.jsonl")],
        ["--input", source, "--output", str(tmp_path / "out.csv")],
        ["--input", source, "--output", output, "-t", "-1"],
    ):
        assert run_here(["generate", *wrong]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    job = ["generate", "--context", "32", "--input", source, "--output", output, "--column", "text"]
    assert run_here(job) == 2
    assert "Row 1 of in.jsonl: The prompt is empty." in capsys.readouterr().err
    assert run_here([*job, "--errors", "skip"]) == 1  # every row failed
    write(Path(source), [{"text": ""}, {"text": "The sun"}])
    assert run_here([*job, "--errors", "skip"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run_here([*job, "--errors", "skip", "--overwrite"]) == 0


@pytest.mark.slow
def test_progress_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(write(tmp_path / "in.jsonl", [{"prompt": "The sun"}] * 3))
    for terminal in (True, False):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        output = ["--output", str(tmp_path / f"{terminal}.jsonl")]
        assert run_here(["generate", "--context", "32", "-n", "2", "--input", source, *output]) == 0
        assert ("3 of 3 rows" in capsys.readouterr().err) == terminal
