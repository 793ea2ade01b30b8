"""Charts: their text and layout, and errors that come before any measurement."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from llamagpu.bench import Yardsticks, plots
from llamagpu.bench.profile import Line, Profile
from llamagpu.cli.main import run
from llamagpu.errors import UsageError
from llamagpu.gpu import Program
from llamagpu.gpu.timeline import Span, Timeline

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
def test_unwritable_charts_are_refused(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--plot", str(tmp_path / "chart.txt")]) == 2
    assert "must end in" in capsys.readouterr().err
    assert run([command, "--plot", str(tmp_path / "nowhere" / "chart.svg")]) == 2
    assert "no directory" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["bench", "profile"])
def test_without_matplotlib(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("llamagpu.bench.measure.open_subject", lambda *_, **__: pytest.fail("it measured"))
    assert run([command, "--plot", str(tmp_path / "chart.svg")]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


def test_the_peers_are_not_measured_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(sys, "argv", ["bench_peers.py", str(tmp_path / "out"), "--only", "none"])
    with pytest.raises(UsageError, match="pip install matplotlib"):
        runpy.run_path(str(Path(__file__).resolve().parent.parent / "scripts" / "bench_peers.py"), run_name="__main__")
    assert not list((tmp_path / "out").iterdir())


def test_names_beside_points_do_not_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.text import Text

    speeds = [1.0, 1.01, 1.02, 3.0, 3.05, 9.0]
    lines = [Line(f"kernel {i}", 1, 1e-3 / s, 0.1, 1e6 * (1 + i % 2), 1e6) for i, s in enumerate(speeds)]
    gpu = [(Span("k", 0.2, 0.8), SimpleNamespace(program=Program("k"), work=1))]
    timeline = Timeline(True, gpu, [Span("wait", 0.0, 1.0)], 1e-6)
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    plots.profile_chart(Profile("test", 1, timeline, lines), Yardsticks(2e10, 1e11), tmp_path / "a.png")
    axes = figures[0].axes[0]
    figures[0].canvas.draw()
    names = [t for t in axes.texts if t.get_text().startswith("kernel")]
    assert len(names) == len(lines)
    boxes = [Text.get_window_extent(t) for t in names]  # the text, without its line to the point
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_spread_keeps_labels_apart() -> None:
    assert plots.spread([1.0, 50.0], 10, 0, 100) == [1.0, 50.0]
    assert plots.spread([50.0, 50.0, 50.0], 10, 0, 100) == [40.0, 50.0, 60.0]
    assert plots.spread([99.0, 98.0], 10, 0, 100) == [100.0, 90.0]
