"""Engines that are measured in turns (``scripts/turns.py``): one that fails or hangs is named, and the others go on."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ANSWERS = """
import sys
print("engines print other lines too", flush=True)
print('{"device": "CPU", "version": "engine 1"}', flush=True)
for number, line in enumerate(sys.stdin):
    print('{"tokens_per_s": %d}' % (10 * number + len(line)), flush=True)
"""
FAILS = "import sys; sys.exit('it has no GPU')"
HANGS = "import time; time.sleep(60)"


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "scripts" / "turns.py"
    spec = importlib.util.spec_from_file_location("turns_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "turns_under_test", module)  # dataclasses look the module up
    spec.loader.exec_module(module)
    return module


def test_every_engine_has_figures_or_a_failure(turns: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    codes = {"good": ANSWERS, "bad": FAILS, "slow": HANGS}
    every = [turns.Entry(name, "CPU", "f32", "", [sys.executable, "-c", code], ("a",)) for name, code in codes.items()]
    every[-1].limit = 0.1
    every.append(turns.Entry("absent", "CPU", "f32", "", ["/nowhere/python"], ("a",)))
    try:
        turns.measure(every, 3)
    finally:
        turns.stop(every)
    rows = {entry.engine: turns.record(entry) for entry in every}
    assert rows["good"]["a"] == {"median": 12, "samples": [2, 12, 22]}
    assert turns.speed(rows["good"]["a"]) == "12.0 (2.0 to 22.0)"
    failures = {name: row["failure"] for name, row in rows.items() if "failure" in row}
    assert failures == {"bad": "it has no GPU", "slow": "no answer for 0.1 s", "absent": "not set up"}
    lines = "\n".join(turns.missing_and_versions(list(rows.values())))
    assert "bad, CPU, f32 (): it has no GPU" in lines
    assert "- good, CPU: engine 1, on CPU" in lines
    assert "slow, CPU, f32, : no answer" in capsys.readouterr().err
