"""What tests share: one device, the embedded model, and the optional folder of reference models beside the project."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llamagpu import gpu

if TYPE_CHECKING:
    from llamagpu import LLM

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may wait for a network
os.environ["LLAMAGPU_TUNING"] = "built-in"  # nor depend on what was measured on this machine, nor change it
os.environ["LLAMAGPU_CACHE"] = tempfile.mkdtemp(prefix="llamagpu-tests-")


@pytest.fixture(scope="session")
def device() -> Iterator[gpu.Device]:
    with gpu.open() as opened:
        yield opened


@pytest.fixture(scope="session")
def baseline() -> Iterator[gpu.Device]:
    """A device with WebGPU's default limits and no features."""
    with gpu.open(baseline=True) as opened:
        yield opened


@pytest.fixture(scope="session")
def story(device: gpu.Device) -> Iterator[LLM]:
    """The model that comes with the package."""
    from llamagpu import LLM  # the tests of the lower rooms do not load the upper ones

    with LLM(device=device) as llm:
        yield llm


@pytest.fixture
def shared() -> Path:
    """The reference models and tokenizers, where the checkout has them."""
    if not SHARED.is_dir():
        pytest.skip("the reference models (../shared) are not here")
    return SHARED
