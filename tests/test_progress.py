"""Progress on standard error during long work: shown on a terminal, not in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import random_models

from llamagpu import kernels
from llamagpu.cli.main import run

on_both = pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])


@pytest.fixture
def stderr_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """A function that makes standard error a terminal or not. Call it in the test, after capsys has replaced stderr."""

    def make(terminal: bool) -> None:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)

    return make


@on_both
def test_bench(terminal: bool, stderr_is: Callable[[bool], None], capsys: pytest.CaptureFixture[str]) -> None:
    stderr_is(terminal)
    assert run(["bench", "-p", "16", "-n", "2", "-r", "1", "--context", "64", "-o", "csv"]) == 0
    out, err = capsys.readouterr()
    assert ("2 of 2 tests" in err and "tg2" in err) == terminal
    assert "tests" not in out


@on_both
def test_perplexity(
    terminal: bool, stderr_is: Callable[[bool], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stderr_is(terminal)
    (tmp_path / "text").write_text("Once upon a time there was a little dog. " * 3)
    assert run(["perplexity", str(tmp_path / "text"), "--window", "16", "--context", "32"]) == 0
    out, err = capsys.readouterr()
    assert ("of 34 tokens" in err) == terminal
    assert len(out.splitlines()) == 1


@on_both
@pytest.mark.slow
def test_doctor(
    terminal: bool,
    stderr_is: Callable[[bool], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stderr_is(terminal)
    monkeypatch.setattr(kernels, "REGISTRY", {name: kernels.REGISTRY[name] for name in ("copy", "add")})
    assert run(["doctor", "--report", str(tmp_path / "report.md")]) == 0
    out, err = capsys.readouterr()
    assert ("2 of 2 kernels" in err and "checking add" in err) == terminal
    assert "ok     add" in out


@on_both
def test_tune(
    terminal: bool,
    stderr_is: Callable[[bool], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stderr_is(terminal)

    def measure(device, layout, progress):
        if progress is not None:
            progress("0.1 s  a token")
        return device.tuning

    monkeypatch.setattr("llamagpu.model.tuner.tune", measure)
    assert run(["tune"]) == 0
    assert ("a token" in capsys.readouterr().err) == terminal


@on_both
def test_a_long_prompt(
    terminal: bool, stderr_is: Callable[[bool], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stderr_is(terminal)
    c = random_models.config()
    random_models.write_model(tmp_path / "m", c, random_models.tensors(c, 5))
    assert run(["generate", "-m", str(tmp_path / "m"), "a" * 600, "-n", "2", "--echo"]) == 0
    out, err = capsys.readouterr()
    assert ("of 600 tokens" in err) == terminal
    assert out.startswith("a" * 600)


def test_a_slow_hub_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(*arguments, **options):
        time.sleep(0.3)
        raise EOFError("the connection broke")  # not an OSError, like the errors of httpx

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fetch)
    monkeypatch.setattr("llamagpu.model.hub.logs._SILENT_SECONDS", 0.05)
    assert run(["generate", "-m", "owner/name", "x"]) == 3
    err = capsys.readouterr().err
    assert err.index("waiting for the hub about owner/name") < err.index("error: The model owner/name could not")
