"""``llamagpu doctor``: the cases of a model, its report, and its exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import random_models

from llamagpu import gpu, kernels
from llamagpu.cli.main import run
from llamagpu.gpu import Program
from llamagpu.model import load_model, prepare
from llamagpu.model.cases import model_cases

EVERY = dict(kernels.REGISTRY)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A registry of one kernel, and a folder for the report; returns its default path."""
    monkeypatch.setattr(kernels, "REGISTRY", {"add": kernels.REGISTRY["add"]})
    monkeypatch.chdir(tmp_path)
    return tmp_path / "llamagpu-doctor.md"


@pytest.mark.slow
def test_json(small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every kernel with a case of its own. The README's example, which tests/test_project.py runs, checks them all."""
    monkeypatch.setattr(kernels, "REGISTRY", {n: replace(k, cases=k.cases[:1]) for n, k in EVERY.items()})
    assert run(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "All" in small.read_text()
    assert report["adapters"]
    assert report["reason"]
    assert {k["kernel"] for k in report["kernels"]} == EVERY.keys()
    assert all(k["ok"] for k in report["kernels"])


def test_cases_that_do_not_fit_in_memory_are_counted(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAMAGPU_MEMORY_LIMIT", "3000000")
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "ok     add                8 of 9" in out
    assert "1 not run (" in out
    assert "rows=67 columns=260000" in out
    text = small.read_text()
    assert "8 of 9 cases passed, 0 failed, 1 did not run" in text
    assert "## Not run" in text


def test_a_wrong_kernel_is_reported(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add = kernels.REGISTRY["add"]
    monkeypatch.setattr(kernels, "REGISTRY", {"add": replace(add, tolerance=-1.0, cases=add.cases[:2])})
    assert run(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert "WRONG  add                0 of 6" in out
    assert "report: llamagpu-doctor.md" in out
    assert "because" in out
    assert "6 of 6 kernel checks failed: add." in err
    assert "with the driver " in err
    assert "llamagpu-doctor.md" in err
    text = small.read_text()
    for part in ("wgpu", "driver", "features", "limits", "tuning", "rows=3 columns=97, seed 0", "elementwise[add]"):
        assert part in text
    assert str(Path.home()) not in text
    assert str(small.parent) not in text


def test_a_folder_that_cannot_be_written_ends_nothing(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add = kernels.REGISTRY["add"]
    monkeypatch.setattr(kernels, "REGISTRY", {"add": replace(add, cases=add.cases[:2])})
    assert run(["doctor", "--report", str(small / "missing" / "report.md")]) == 0
    assert "cannot be written" in capsys.readouterr().err


# Programs that do not depend on the model: tests/test_kernels.py has them all.
ANYWAY = {"sample", "logits_process", "logits_select", "step_ids", "void_rows", "embedding"}


def programs_of(device: gpu.Device, prepared: object, tuning: gpu.Tuning) -> set[Program]:
    """The programs of a model's plans for prompts and steps of several sizes."""
    model = load_model(prepared, device, tuning, 640, "auto")  # type: ignore[arg-type]
    f = model.forward
    plans = [f.prefill(1), f.prefill(2), f.prefill(48), f.head(1), f.head(8), f.head(16)]
    plans += [f.decode(batch, positions, True) for batch in (1, 4, 8) for positions in (1, 600)]
    return {d.program for plan in plans for d in plan.dispatches}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "variant"),
    [
        ("gqa", "auto", 0),
        ("all-biases", "auto", 1),
        ("theta-f16", "int8", 1),
        ("qwen3", "auto", 0),
        ("gemma2", "auto", 1),
        ("granite", "auto", 0),
    ],
)
def test_the_cases_link_all_programs_of_a_model(
    device: gpu.Device, tmp_path: Path, name: str, dtype: str, variant: int
) -> None:
    raw = random_models.CONFIGS[name]
    random_models.write_model(tmp_path, raw, random_models.tensors(raw, 5))
    tuning = gpu.variants(device.features, device.subgroup_size)[variant]
    prepared = prepare(tmp_path, dtype)
    with device.ledger.tracking() as buffers:
        wanted = programs_of(device, prepared, tuning)
        kv = "f16" if dtype == "int8" or "f16" in name else "f32"
        found = {
            program
            for case in model_cases(prepared.layout, kv, tuning)
            for program in kernels.programs(kernels.REGISTRY[case.kernel], device, case.dims, case.tuning)
        }
    for buffer in buffers:
        device.free(buffer)
    missing = sorted(p.label for p in wanted - found if p.shader not in ANYWAY)
    assert not missing, "\n".join(missing)
