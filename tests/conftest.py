"""Shared fixtures: devices, the bundled model, and the optional folder of reference models beside the project."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llamagpu import gpu
from llamagpu.gpu.tuning_store import cache_folder

if TYPE_CHECKING:
    from llamagpu import LLM

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may wait for a network
os.environ.setdefault("LLAMAGPU_DEVICE", "auto")  # asked for: no command warns of a software adapter
os.environ["LLAMAGPU_TUNING"] = "built-in"  # nor read or change the tunings measured on this machine
_LIBRARIES = cache_folder() / "libraries"  # of exported sites: the set-up fetched them
os.environ["LLAMAGPU_CACHE"] = tempfile.mkdtemp(prefix="llamagpu-tests-")
if _LIBRARIES.is_dir():
    shutil.copytree(_LIBRARIES, cache_folder() / "libraries")


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
    """The bundled model."""
    from llamagpu import LLM  # imported here so that tests of gpu and kernels do not load the engine

    with LLM(device=device) as llm:
        yield llm


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JavaScript of exported sites with its libraries, for Node. Skips the test without Node or the libraries."""
    from exported_text import make_site

    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def shared() -> Path:
    """The reference models and tokenizers. Skips the test if the checkout lacks them."""
    if not SHARED.is_dir():
        pytest.skip("the reference models (../shared) are not here")
    return SHARED
