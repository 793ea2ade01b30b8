#!/usr/bin/env python3
"""Make docs/models.json and docs/models.md: every architecture against the goldens that transformers made.

    python scripts/check_models.py docs

For each random model of ``tests/random_models.py``: the largest error of the logits, the greedy tokens that agree with
transformers, and the dispatches of a decoded token, counted at wgpu's boundary.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from llamagpu import LLM, __version__, gpu
from llamagpu.gpu.census import census

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))
import random_models  # noqa: E402

GOLDENS = load_file(TESTS / "goldens.safetensors")
MODELS = json.loads((TESTS / "goldens.json").read_text())
TOKENS = 24
_HEADINGS = ("architecture", "models", "largest logit error", "greedy tokens that agree", "dispatches a layer")


def check(name: str, device: gpu.Device) -> dict[str, Any]:
    """The errors of one random model, in units of max(1, max|logit|)."""
    config, about = random_models.CONFIGS[name], MODELS["models"][name]
    original, worst = config.get("original_max_position_embeddings", 0), 0.0
    columns = random_models.kept_columns(config)
    with tempfile.TemporaryDirectory() as folder:
        weights = random_models.tensors(config, about["seed"], about["gain"])
        directory = random_models.write_model(Path(folder), config, weights)
        for length in random_models.PROMPTS:
            context = original if length <= original else None
            with LLM(directory, device=device, kv_dtype="float32", context=context) as llm:
                got = llm.logits(random_models.prompt(config, length, about["seed"]))[-random_models.LAST :]
                error = float(np.abs(got[:, columns] - GOLDENS[f"{name}.{length}"]).max())
                worst = max(worst, error / max(1.0, about["max_logit"]))
        with LLM(directory, device=device, kv_dtype="float32") as llm:
            prompt = random_models.prompt(config, random_models.PROMPTS[-1], about["greedy"]["prompt_seed"])
            found = llm.generate(prompt, max_tokens=TOKENS, ignore_eos=True).token_ids
            per_token, layers = dispatches(llm), llm.config.num_hidden_layers
    agree = sum(a == b for a, b in zip(found, about["greedy"]["tokens"], strict=True))
    return {"architecture": config["model_type"], "error": worst, "agree": agree, "layer": (per_token - 4) / layers}


def dispatches(llm: LLM) -> int:
    """Dispatches of a greedy token within the first attention run."""
    counts = []
    for tokens in (2, 12):
        with census() as counted:
            llm.generate([1, 2, 3], max_tokens=tokens, ignore_eos=True)
        counts.append(counted.dispatches)
    return (counts[1] - counts[0]) // 10


def page(found: dict[str, Any]) -> str:
    """The page of the results, as Markdown."""
    lines = [
        "# Architectures",
        "",
        f"Random models of every architecture against {found['reference']}: prompts of "
        f"{', '.join(map(str, random_models.PROMPTS))} tokens, then {TOKENS} greedy tokens after the longest.",
        "Errors are in units of max(1, largest logit); the bar is 5e-5.",
        "Dispatches are those of a decoded token, the four of embedding, head and sampling aside.",
        "",
        f"| {' | '.join(_HEADINGS)} |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for architecture in dict.fromkeys(m["architecture"] for m in found["models"].values()):
        rows = [m for m in found["models"].values() if m["architecture"] == architecture]
        layers = sorted({round(m["layer"], 1) for m in rows})
        agree, asked = sum(m["agree"] for m in rows), TOKENS * len(rows)
        cells = (architecture, len(rows), f"{max(m['error'] for m in rows):.1e}", f"{agree} of {asked}")
        lines.append(f"| {' | '.join(map(str, cells))} | {', '.join(f'{n:g}' for n in layers)} |")
    lines += ["", f"llamagpu {found['version']} on {found['adapter']}. Made by `python scripts/check_models.py docs`."]
    return "\n".join(lines) + "\n"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    with gpu.open() as device:
        models = {name: check(name, device) for name in random_models.CONFIGS}
        about = {"version": __version__, "adapter": str(device.adapter), "reference": MODELS["made_with"]}
    found = about | {"models": models}
    (out / "models.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / "models.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
