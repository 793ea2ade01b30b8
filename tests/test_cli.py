"""The command line: output, exit codes, and short errors without a traceback."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import random_models

from llamagpu import LLM
from llamagpu.cli.main import cli
from llamagpu.cli.main import run as run_here

COMMAND = (sys.executable, "-m", "llamagpu")


def run(*arguments: str, stdin: bytes | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    env = os.environ | {"NO_COLOR": "1"} | environment
    options = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=120, env=env, **options)


def fails(code: int, *arguments: str, stdin: bytes | None = None, **environment: str) -> str:
    """Run a command that must fail with this exit code and an empty standard output. Returns its error text."""
    done = run(*arguments, stdin=stdin, **environment)
    err = done.stderr.decode()
    assert done.returncode == code, err
    assert done.stdout == b""
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 4
    return err


def fails_here(code: int, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Like ``fails``, but in this process."""
    assert run_here(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 4
    return err


def test_shapes_are_checked_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    generate = ("generate", "Hi", "-m", "nowhere")
    assert "schema nowhere.json cannot be read" in fails_here(2, capsys, *generate, "--schema", "nowhere.json")
    assert "regex and choices exclude" in fails_here(2, capsys, *generate, "--regex", "a", "--choice", "b")
    assert "needs an adapter" in fails_here(2, capsys, *generate, "--adapter-scale", "2")


@pytest.mark.slow
def test_generate_writes_what_it_is_asked_for(tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}')
    grammar.write_text('start: "a" "b"')
    assert run("generate", "Hi", "--choice", "cat", "--choice", "cats", "--ignore-eos").stdout == b"cats\n"
    assert run("generate", "Hi", "--grammar", str(grammar)).stdout == b"ab\n"
    assert run("generate", "Hi", "--schema", str(schema), "-n", "9").stdout.startswith(b'{"ok": ')


@pytest.mark.slow
def test_generate_streams_text() -> None:
    done = run("generate", "Once upon a time", "-n", "20")
    assert done.returncode == 0, done.stderr.decode()
    assert len(done.stdout.decode().split()) > 8
    assert b"prompt 5 tokens" in done.stderr
    assert b"tokens/s" in done.stderr
    assert run("generate", "-p", "Once upon a time", "--max-tokens", "20").stdout == done.stdout
    echoed = run("generate", "--echo", "Once upon a time", "-n", "20").stdout
    assert echoed == b"Once upon a time" + done.stdout


@pytest.mark.slow
def test_prompts_from_files_and_standard_input(tmp_path: Path) -> None:
    expected = run("generate", "Once upon a time", "-n", "8").stdout
    path = tmp_path / "prompt.txt"
    path.write_text("Once upon a time")
    assert run("generate", "--file", str(path), "-n", "8").stdout == expected
    assert run("generate", "-", "-n", "8", stdin=b"Once upon a time").stdout == expected
    assert run("generate", "-f", "-", "-n", "8", stdin=b"Once upon a time").stdout == expected


@pytest.mark.slow
def test_the_final_line_break_of_a_prompt_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With -f, with -, and from a pipe without a prompt argument."""
    path, prompts, real = tmp_path / "prompt.txt", [], LLM.stream
    monkeypatch.setattr(LLM, "stream", lambda llm, text, **rest: (prompts.append(text), real(llm, text, **rest))[1])
    for data, prompt in ((b"Once\n", "Once"), (b"Once\r\n", "Once"), (b"Once\n\n", "Once\n"), (b"Once\r", "Once\r")):
        path.write_bytes(data)
        for arguments in (["-f", str(path)], ["-"], []):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
            assert run_here(["generate", *arguments, "-n", "1", "--context", "16"]) == 0
            assert prompts.pop() == prompt


def test_generate_until_the_context_is_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(["generate", "Once", "-n", "-1", "--context", "20", "--ignore-eos"]) == 0
    assert "the context is full" in capsys.readouterr().err
    assert run_here(["generate", "Once", "-n", "-2"]) == 2


def test_a_prompt_cache_is_kept_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, prompt = str(tmp_path / "prompts"), "The duck swam to the big rock and sang a song for all of her friends. "
    found = []
    for options in ([], [], ["--ignore-eos"]):
        assert run_here(["generate", prompt, "-n", "3", "--prompt-cache", kept, "--json", *options]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [f["cached_tokens"] for f in found] == [0, 16, 16]
    assert found[0]["token_ids"] == found[1]["token_ids"]
    assert run_here(["generate", prompt, "-n", "1", "--prompt-cache", kept]) == 0
    assert "(16 cached)" in capsys.readouterr().err
    before = Path(kept).read_bytes()
    assert run_here(["generate", prompt, "--prompt-cache", kept, "--dtype", "int8"]) == 2
    assert "another dtype of the weights" in capsys.readouterr().err
    assert Path(kept).read_bytes() == before
    for bad in (str(tmp_path), str(tmp_path / "none" / "prompts")):
        assert run_here(["chat", "--prompt-cache", bad]) == 2
    assert run_here(["generate", "--input", kept, "--prompt-cache", kept]) == 2


@pytest.mark.parametrize("command", list(cli.commands))
def test_verbose_is_an_option_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here([command, "-v", "--help"]) == 0


def test_verbose_after_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(["generate", "-v", "Once", "-n", "1", "--context", "16"]) == 0
    assert "llamagpu: using" in capsys.readouterr().err


def test_inspect_takes_the_model_as_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    c = random_models.config()
    model = str(random_models.write_model(tmp_path / "m", c, random_models.tensors(c, 1)))
    assert run_here(["inspect", "-m", model, "--json"]) == 0
    named = capsys.readouterr().out
    assert run_here(["inspect", model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == json.loads(named)["parameters"]
    assert run_here(["inspect", model, "-m", model]) == 2


def test_generate_json() -> None:
    done = run("generate", "Once upon a time", "-n", "5", "-t", "0.7", "--seed", "3", "--json")
    value = json.loads(done.stdout)
    assert value["completion_tokens"] == len(value["token_ids"]) == 5
    assert (value["finish_reason"], value["seed"], value["model"]) == ("length", 3, "stories")
    assert value["text"]


def test_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ("generate",),
        ("generate", "a", "-p", "b"),
        ("generate", "a", "--nonsense"),
        ("generate", "a", "-n", "0"),
        ("generate", "a", "-n", "many"),
        ("generate", "a", "-t", "-1"),
        ("generate", "a", "--seed", "-1"),
        ("generate", "a", "--stop", ""),
        ("generate", "a", "--dtype", "int3"),
        ("generate", "a", "--context", "99999"),
        ("generate", ""),
        ("generate", "a", "--json", "--echo"),
        ("generate", "-f", "/nowhere/at/all"),
        ("profile", "-p", "5000"),
        ("perplexity", "--window", "1", "README.md"),
        ("nonsense",),
    ):
        fails_here(2, capsys, *arguments)
    fails(2, "generate", "a", "--nonsense")
    assert "UTF-8" in fails(2, "generate", "-", stdin=b"\xff\xfe")
    err = fails_here(2, capsys, "generate", "word " * 600)
    assert "the context holds 512" in err
    assert "Nothing was cut" in err


def test_help_and_version() -> None:
    assert b"generate" in run("--help").stdout
    assert b"--temperature" in run("generate", "-h").stdout
    assert run("--version").stdout.startswith(b"llamagpu, version ")


@pytest.mark.slow
def test_an_unreachable_hub_fails_soon(tmp_path: Path) -> None:
    """By default, the hub's library retries for 23 seconds."""
    there = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    for command in (("generate", "a", "-m"), ("inspect",)):
        start = time.monotonic()
        fails(3, *command, "owner/name", **there)
        assert time.monotonic() - start < 8


@pytest.mark.slow
def test_model_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(3, "generate", "a", "-m", str(tmp_path / "nowhere"))
    assert "no config.json" in fails(3, "generate", "a", "-m", str(tmp_path))
    assert "could not be fetched" in fails(
        3, "generate", "a", "-m", "some/model", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)
    )
    assert "no model file" in fails_here(3, capsys, "generate", "a", "-m", str(tmp_path / "model.gguf"))
    for name in ("model.bin", "model.gguf"):
        (tmp_path / name).write_bytes(b"GGUF\3\0\0\0")
        assert f"{name} is broken" in fails_here(4, capsys, "generate", "a", "-m", str(tmp_path / name))
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    assert "a LoRA adapter" in fails_here(4, capsys, "generate", "a", "-m", str(tmp_path / "lora"))
    c = random_models.config(model_type="gpt_oss")
    random_models.write_model(tmp_path / "m", c, {})
    assert "'gpt_oss' is not supported" in fails(4, "generate", "a", "-m", str(tmp_path / "m"))


@pytest.mark.slow
def test_adapter_and_memory_errors() -> None:
    assert "No adapter matches" in fails(5, "generate", "a", "--device", "geforce")
    hidden = {"VK_ICD_FILENAMES": "/nowhere.json", "VK_DRIVER_FILES": "/nowhere.json"}
    assert "mesa-vulkan-drivers" in fails(5, "generate", "a", **hidden)
    assert "LLAMAGPU_MEMORY_LIMIT" in fails(2, "generate", "a", LLAMAGPU_MEMORY_LIMIT="abc")
    assert "does not fit" in fails(6, "generate", "a", LLAMAGPU_MEMORY_LIMIT="3000000")


def test_an_unexpected_failure_has_no_traceback_unless_asked(tmp_path: Path) -> None:
    broken = tmp_path / "sitecustomize.py"
    broken.write_text(
        "import llamagpu.engine.params as p\ndef f(**k): raise ZeroDivisionError('odd')\np.sampling_params = f\n"
    )
    err = fails(1, "generate", "a", PYTHONPATH=str(tmp_path))
    assert "ZeroDivisionError" in err
    assert "LLAMAGPU_DEBUG=1" in err
    assert b"Traceback" in run("generate", "a", PYTHONPATH=str(tmp_path), LLAMAGPU_DEBUG="1").stderr


def test_a_closed_pipe_ends_quietly() -> None:
    process = subprocess.Popen(
        [*COMMAND, "generate", "Once", "-n", "400"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(5)
    process.stdout.close()
    err = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) == 141
    assert err == ""


def test_control_c_stops_the_answer() -> None:
    """Exit code 130, output that ends with a line break, and no traceback, while generating and while loading."""
    for wait_for_text in (True, False):
        process = subprocess.Popen(
            [*COMMAND, "generate", "Once upon a time", "-n", "500", "--ignore-eos"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        if wait_for_text:
            process.stdout.read(10)
        else:
            time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err.decode()
        assert err.decode().strip() == "interrupted"
        assert out.endswith(b"\n") or not wait_for_text


def test_a_terminal_that_is_not_utf8() -> None:
    done = run("generate", "--echo", "Once 🦙", "-n", "3", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.startswith(b"Once ?")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("generate Once -n 3 > /dev/full", 1),
        ("--help > /dev/full", 1),
        ("generate Once -n 3 >&-", 0),
        ("generate Once -n 3 2>&-", 0),
        ("generate - -n 3 <&-", 2),
        ("--help | true", 141),
    ],
)
def test_closed_or_full_standard_streams(line: str, code: int) -> None:
    command = f"{sys.executable} -m llamagpu {line}" + ("; exit ${PIPESTATUS[0]}" if "|" in line else "")
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, env=buffered)
    assert done.returncode == code, done.stderr
    assert b"ignored" not in done.stderr
    assert b"unexpected" not in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_prompt_of_megabytes_is_refused_at_once() -> None:
    err = fails(2, "generate", "-", stdin=b"Once upon a time " * 2_000_000)
    assert "34,000,000 characters" in err


def test_no_prompt_at_all_shows_the_help() -> None:
    done = run()
    assert done.returncode == 2
    assert b"Usage: llamagpu" in done.stdout + done.stderr
