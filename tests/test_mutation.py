"""Edits of shaders that the kernels' checks once let pass, and a draw of the mutation test (``scripts/mutate.py``)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from llamagpu import gpu

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "mutate.py"
# Kernel, file, text, edited text.
ONCE_UNSEEN = [
    ("sample", "sample", "position >= draw.z", "position > draw.z"),
    ("sample", "sample", "step_rows[row].z = params.idle;", ""),
    ("sample", "lib/pick", "a.flag | b.flag", "a.flag"),
    ("sample", "sample", "found.y, found.z)", "found.y, 0u)"),
    ("sample", "sample", "counts[step_rows[row].z * params.stride + token] += 1u;", ""),
    ("logits_process", "logits_process", "l > 0.0", "true"),
    ("logits_select", "lib/select", "n <= before + count", "n < before + count"),
    ("logits_select", "logits_select", "s.top_p * ONE", "0.99 * s.top_p * ONE"),
    ("dequantize", "dequantize", "params.first + row", "row"),
    ("add", "elementwise", "item < params.count4", "item <= params.count4"),
    ("copy", "copy", "i < params.count4", "i <= params.count4"),
    ("gelu", "gelu", "item < params.count", "item <= params.count"),
    ("rope", "rope", "row >= params.rows", "row > params.rows"),
]


@pytest.fixture(scope="module")
def mutate() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("mutate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module  # dataclasses look the module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mutate"]


@pytest.mark.slow
def test_edits_that_were_once_unseen_are_caught(mutate: ModuleType, device: gpu.Device, tmp_path: Path) -> None:
    shaders = mutate.Shaders(device, tmp_path)
    cases = mutate.collect(device, sorted({kernel for kernel, *_ in ONCE_UNSEEN}), quick=True)
    with shaders.used():
        for kernel, file, old, new in ONCE_UNSEEN:
            text = (shaders.root / f"{file}.wgsl").read_text()
            assert text.count(old) == 1, (file, old)
            mutant = mutate.Mutant(file, 1, 0, 0, "", "operator")
            mine = [c for c in cases if c.kernel == kernel]
            verdict = mutate.judge(device, shaders, mine, mutant, text.replace(old, new))
            assert verdict.outcome == "caught", (file, old, verdict)


@pytest.mark.slow
def test_a_draw_of_edits_is_caught(tmp_path: Path) -> None:
    """The script fails if less than 97 % of the edits that change an output are caught."""
    small = "rms_norm,layer_norm,gate,softmax,silu,rope,kv_write,transpose,slice_rows,gelu"
    command = [sys.executable, SCRIPT, "--count", "12", "--seed", "3", "--quick", "--kernels", small]
    command += ["--out", tmp_path / "out.json"]
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "caught" in (tmp_path / "out.md").read_text()
