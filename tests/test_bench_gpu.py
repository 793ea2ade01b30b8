"""``scripts/bench_gpu``: its measurements in short, its deadlines, and other programs that fail."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
# Lines of llama-bench, with the fields that are read.
_LINE = {"build_commit": "0c1e570", "cpu_info": "AMD EPYC", "gpu_info": "llvmpipe", "backends": "Vulkan"}
_LINE |= {"model_type": "llama 256M Q8_0", "n_prompt": 16, "n_gen": 0, "n_depth": 16, "avg_ts": 6.59}
_LINE |= {"samples_ts": [6.59], "stddev_ts": 0.0}


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with its neighbours importable."""
    monkeypatch.syspath_prepend(SCRIPTS)
    import bench_gpu

    return bench_gpu


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A llama-bench that writes a result, and then ends as the model's name says."""
    path = tmp_path / "llama-bench"
    lines = "".join(f"echo '{json.dumps(_LINE | more)}'\n" for more in ({}, {"n_prompt": 0, "n_gen": 4}))
    none = json.dumps(_LINE | {"gpu_info": ""})
    cases = f"""
    good*) echo loading >&2; {lines.replace(chr(10), "; ")} ;;
    hangs*) echo '{json.dumps(_LINE)}'; sleep 60 & sleep 60 ;;
    cpu*) echo '{none}' ;;
    silent*) ;;
    *) echo failed to load >&2; exit 3 ;;
"""
    path.write_text(f'#!/bin/sh\ncase "$(basename "$2")" in{cases}esac\n')
    path.chmod(0o755)
    return path


@pytest.mark.slow
def test_the_measurement_of_changes_runs(tmp_path: Path, program: Path) -> None:
    """The smoke test of ``scripts/bench_gpu --only changes``; no part of it may fail but a broken program."""
    models = [tmp_path / name for name in ("good.gguf", "broken.gguf")]
    peers = ["--llama-bench", program]
    for model in models:
        model.touch()
        peers += ["--gguf", model]
    command = [sys.executable, SCRIPTS / "bench_gpu.py", "--only", "changes", "--short", *peers, tmp_path]
    subprocess.run(command, check=True, timeout=300)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["failed"] == {"llama-bench broken.gguf": "PeerError: exit code 3: failed to load"}
    assert not any(found["left_out"].values())
    assert [c["change"] for c in found["changes"][0]["steps"]] == ["trusted=False", "attention=whole"]
    assert found["bursts"][0]["bursts"].keys() == {"1", "8"}
    assert {a["kind"] for a in found["attention"]} == {"whole", "blocks"}
    assert "workgroup" in found["reductions"][0]["seconds"]
    steps = found["prefetching"][0]["steps"]
    assert [s["bytes"] for s in steps] == [0, found["prefetching"][0]["bytes"]]
    assert {(a["partials"], a["each"]) for a in found["arrivals"]} >= {("plain", 8), ("atomic", 16)}
    assert {a["wrong"] for a in found["arrivals"] if a["partials"] != "plain, no barrier"} == {0}
    assert [r["test"] for r in found["llama_bench"]] == ["pp16 @ d16", "tg4 @ d16"]
    page = (tmp_path / "gpu.md").read_text()
    for head in ("attention of one sequence", "reduction", "read ahead", "across workgroups", "change", "llama.cpp"):
        assert head in page, head


def test_a_run_ends_in_time_and_names_what_it_left_out(scripts: ModuleType, tmp_path: Path) -> None:
    """Every section is asked before it measures. The sections' limits leave time before the end of the run."""
    for limits in (scripts.LIMITS, scripts.CHANGES_LIMITS):
        assert sum(limits.values()) <= 0.97 * scripts.Schedule.FULL
    for only, asked in (
        (None, {"yardsticks", "models", "llama-bench"}),
        ("changes", {"attention", "checks", "changes", "llama-bench"}),
    ):
        bench = scripts.Bench(tmp_path, short=True, only=only, models=[tmp_path / "a.gguf"], llama_bench=tmp_path)
        bench._schedule._ends |= dict.fromkeys(bench._schedule._ends, 0.0) | {"opening": float("inf")}
        found = bench.run()
        assert set(found["failed"]) <= {"torch"}  # where it is not installed
        assert {section for section, names in found["left_out"].items() if names} >= asked
        assert "No time was left in" in (tmp_path / "gpu.md").read_text()


def test_sections_inherit_time(scripts: ModuleType) -> None:
    schedule = scripts.Schedule({"a": 100, "b": 200}, 270)
    a, b = schedule.budget("a"), schedule.budget("b")
    assert 49 < a.left <= 50
    assert 149 < b.left <= 150
    assert 49 < b.share(3).left <= 50
    assert a.allows("short")
    assert not a.allows("long", 60)
    assert schedule.left_out == {"a": ["long"], "b": []}


def test_a_hanging_part_ends_with_the_run(scripts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, codes = scripts.Bench(tmp_path), []
    monkeypatch.setattr("os._exit", codes.append)
    with bench.part("products"):
        bench.out["gap"] = {"waiting": 2e-6, "independent": 1e-6}
        bench.say("a line")
        bench.end()
    assert codes == [1]
    page = (tmp_path / "gpu.md").read_text()
    assert "2.00 µs" in page
    assert bench.out["failed"] == {}  # the part ended after all


def test_llama_bench_may_fail_or_hang(scripts: ModuleType, program: Path) -> None:
    """Results that came before are kept, and no child holds up the end."""
    import gpu_peers

    out: list[dict] = []
    gpu_peers.llama_bench(program, Path("good.gguf"), 20, out, (16, 4, 16), 1)
    assert [(r["test"], r["tokens_per_s"], r["backend"]) for r in out] == [
        ("pp16 @ d16", 6.59, "Vulkan, llvmpipe"),
        ("tg4 @ d16", 6.59, "Vulkan, llvmpipe"),
    ]
    start = time.perf_counter()
    for model, seconds, match in (
        ("hangs.gguf", 0.5, "did not end within"),
        ("cpu.gguf", 20, "ran on the CPU: AMD EPYC"),
        ("silent.gguf", 20, "no result"),
        ("broken.gguf", 20, "exit code 3: failed to load"),
    ):
        with pytest.raises(gpu_peers.PeerError, match=match):
            gpu_peers.llama_bench(program, Path(model), seconds, out, (16, 4, 16), 1)
    assert time.perf_counter() - start < 20
    assert len(out) == 3  # one of the program that hangs


def test_wrong_options_are_refused(scripts: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, why in (
        (["--llama-bench", __file__], "need one another"),
        (["--gguf", __file__], "need one another"),
        (["--llama-bench", __file__, "--gguf", "/nowhere.gguf"], "no file"),
        (["--minutes", "0"], "must be positive"),
        (["--shapes", "llama-9b"], "no shape llama-9b"),
    ):
        with pytest.raises(SystemExit):
            scripts.parse([*options, str(tmp_path)])
        assert why in capsys.readouterr().err
    options = scripts.parse(["--llama-bench", __file__, "--gguf", __file__, "--gguf", __file__, str(tmp_path)])
    assert len(options.gguf) == 2
    assert options.out == tmp_path
