"""Compiling while a model loads: errors, interrupts, and loads on the device thread. Counts are in test_budgets.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import random_models

from llamagpu import LLM, gpu
from llamagpu.errors import KernelError
from llamagpu.gpu import Linked, Program, link, pipelines, shader_root

PROMPT = [5, 6, 7, 8, 9]


def broken(program: Program) -> Linked:
    """As ``link``, but the last line of ``rms_norm.wgsl`` is none of WGSL."""
    linked = link(program)
    return replace(linked, code=linked.code.rstrip() + " !\n") if program.shader == "rms_norm" else linked


@pytest.mark.slow
def test_loads_that_fail_and_one_that_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shader that does not compile is named with its line, and Ctrl-C ends a load; nothing stays behind. Then the
    model loads, even on the device thread, and prompts of several lengths need no other program."""
    config = random_models.config()
    folder = random_models.write_model(tmp_path, config, random_models.tensors(config, 5))

    def interrupt(done: int, total: int) -> None:
        if 2 * done > total:
            raise KeyboardInterrupt

    with gpu.open() as device:
        device.synchronize()
        before, last = device.ledger.held(), len((shader_root() / "rms_norm.wgsl").read_text().splitlines())
        with monkeypatch.context() as patch:
            patch.setattr(pipelines, "link", broken)
            with pytest.raises(KernelError, match=rf"rms_norm\.wgsl:{last}"):
                LLM(folder, device=device)
        assert device.ledger.held() == before
        with pytest.raises(KeyboardInterrupt):
            LLM(folder, device=device, progress=interrupt)
        assert device.ledger.held() == before
        with device.call(lambda: LLM(folder, device=device)) as llm:
            made = len(device.pipelines)
            for prompt in (PROMPT, PROMPT[::-1] * 9):
                assert len(llm.generate(prompt, max_tokens=1).token_ids) == 1
                assert len(device.pipelines) == made
