#!/usr/bin/env python3
"""Make tests/goldens_encoders.safetensors: the last hidden states of random encoders by transformers, float32, CPU.

Development only; needs the ``oracle`` extra. Weights come from numpy seeds (tests/random_encoders.py).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
import random_encoders  # noqa: E402


def main() -> None:
    """Write the goldens: of every text the first and the last vector, and the mean of all."""
    kept: dict[str, np.ndarray] = {}
    for seed, (name, raw) in enumerate(random_encoders.CONFIGS.items(), 1):
        with tempfile.TemporaryDirectory() as folder:
            random_encoders.write_model(Path(folder), raw, random_encoders.tensors(raw, seed))
            model, loading = transformers.AutoModel.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
            )
        wrong = {k: v for k, v in loading.items() if v and not all("pooler" in str(n) for n in v)}
        if wrong:
            sys.exit(f"{name}: {wrong}")
        for ids, types in random_encoders.texts(raw, seed):
            given = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
            if "type_vocab_size" in raw:
                given["token_type_ids"] = torch.tensor([types])
            with torch.no_grad():
                hidden = model.eval()(**given).last_hidden_state[0].numpy()
            kept[f"{name}.{len(ids)}"] = np.stack([hidden[0], hidden[-1], hidden.mean(axis=0)])
        print(name, float(np.abs(hidden).max()), flush=True)
    for seed, (name, labels) in enumerate(random_encoders.CLASSIFIERS.items(), 1):
        raw = random_encoders.CONFIGS[name] | {"num_labels": labels}
        with tempfile.TemporaryDirectory() as folder:
            random_encoders.write_model(Path(folder), raw, random_encoders.classifier(raw, labels, seed))
            model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        scores = []
        for ids, _ in random_encoders.texts(raw, seed):
            with torch.no_grad():
                pair = {"token_type_ids": torch.tensor([[0] * (len(ids) - 1) + [1]])}
                types = pair if raw.get("type_vocab_size") == 2 else {}
                scores.append(model.eval()(input_ids=torch.tensor([ids]), **types).logits[0].numpy())
        kept[f"{name}.scores"] = np.stack(scores)
    save_file(kept, TESTS / "goldens_encoders.safetensors")


if __name__ == "__main__":
    main()
