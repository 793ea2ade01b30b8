"""Charts: they are drawn, say what was measured, and refuse before anything is measured what could not be written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llamagpu.cli.main import run

pytest.importorskip("matplotlib")


def texts(path: Path) -> str:
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_bench_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.svg"
    assert run(["bench", "-p", "16", "-n", "4", "-r", "1", "--context", "64", "--plot", str(out)]) == 0
    found = texts(out)
    assert "pp16" in found
    assert "tg4" in found
    assert "of copy" in found
    assert "tokens a second" in found


@pytest.mark.slow
def test_profile_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "profile.svg"
    assert run(["profile", "-d", "20", "-r", "2", "--context", "64", "--plot", str(out)]) == 0
    found = texts(out)
    for word in ("attention_decode", "product_rows", "share of the GPU", "multiply-adds per byte", "host", "wait"):
        assert word in found, word


@pytest.mark.parametrize("command", ["bench", "profile"])
def test_where_no_chart_can_be_written(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--plot", str(tmp_path / "chart.txt")]) == 2
    assert "must end in" in capsys.readouterr().err
    assert run([command, "--plot", str(tmp_path / "nowhere" / "chart.svg")]) == 2
    assert "no directory" in capsys.readouterr().err


def test_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert run(["bench", "--plot", str(tmp_path / "chart.svg")]) == 2
    assert "llamagpu[plot]" in capsys.readouterr().err
