#!/usr/bin/env python3
"""Make tests/goldens_lora.*: logits and greedy tokens of random models with random LoRA adapters by peft, float32 on
the CPU, and the adapter_config.json that peft writes for each.

Development only; needs the ``oracle`` extra and peft:

    python scripts/make_lora_goldens.py
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import peft
import torch
from safetensors.numpy import save_file

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS.parent / "scripts")]
import make_goldens  # noqa: E402
import random_adapters  # noqa: E402
import random_models  # noqa: E402

LENGTH, MADE = 40, 8
LEAST_GAP = 1e-3  # between best and second logit, along greedy tokens


def saved_config(settings: dict[str, object]) -> dict[str, object]:
    """adapter_config.json as peft writes it."""
    with tempfile.TemporaryDirectory() as folder:
        peft.LoraConfig(task_type="CAUSAL_LM", **settings).save_pretrained(folder)
        return json.loads((Path(folder) / "adapter_config.json").read_text())


def logits(directory: Path, adapter: Path, ids: list[int]) -> np.ndarray:
    with warnings.catch_warnings(), torch.no_grad():
        # peft only warns of tensors that it does not find, or that are left over
        warnings.filterwarnings("error", message="(?i).*(missing|unexpected).*")
        model = peft.PeftModel.from_pretrained(make_goldens.load(directory), adapter, torch_dtype=torch.float32).eval()
        return model(torch.tensor([ids]), use_cache=False).logits[0].numpy()


def main() -> None:
    models = json.loads((TESTS / "goldens.json").read_text())["models"]
    kept: dict[str, np.ndarray] = {}
    about: dict[str, object] = {}
    for seed, (name, (model, settings)) in enumerate(random_adapters.CASES.items(), 1):
        c, facts = random_models.CONFIGS[model], models[model]
        config = saved_config(settings)
        with tempfile.TemporaryDirectory() as folder:
            weights = random_models.tensors(c, facts["seed"], facts["gain"])
            directory = random_models.write_model(Path(folder) / "model", c, weights, tokenizer=False)
            tensors = random_adapters.matrices(c, settings, seed)
            adapter = random_adapters.write_adapter(Path(folder) / "adapter", config, tensors, bf16=name == "bf16")
            gap, prompt_seed = 0.0, seed
            while gap < LEAST_GAP:  # otherwise rounding could choose another token
                ids = random_models.prompt(c, LENGTH, prompt_seed)
                out, gap = list(ids), float("inf")
                first = logits(directory, adapter, ids)
                for _ in range(MADE):
                    row = logits(directory, adapter, out)[-1]
                    best = np.sort(row)
                    gap = min(gap, float(best[-1] - best[-2]))
                    out.append(int(row.argmax()))
                prompt_seed += 100
            change = float(np.abs(first - make_goldens.logits(directory, ids)).max())
        kept[name] = np.ascontiguousarray(first[-random_models.LAST :], np.float32)
        largest = float(np.abs(first).max())
        about[name] = {"seed": seed, "prompt_seed": prompt_seed - 100, "max_logit": largest, "config": config}
        about[name] |= {"tokens": out[LENGTH:], "gap": gap}  # type: ignore[operator]
        print(f"{name}: max|logit| {largest:.2f}, changed by {change:.2f}, gap {gap:.1e}", flush=True)
    save_file(kept, TESTS / "goldens_lora.safetensors")
    text = {"made_with": f"peft {peft.__version__}, torch {torch.__version__}, float32, CPU", "adapters": about}
    (TESTS / "goldens_lora.json").write_text(json.dumps(text, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
