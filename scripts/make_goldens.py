#!/usr/bin/env python3
"""Make tests/goldens.*: logits of random models by transformers, float32 on the CPU.

Development only; needs the ``oracle`` extra:

    python scripts/make_goldens.py          # logits by transformers, and the config keys that it reads
    python scripts/make_goldens.py qwen2 qwen2-tied    # only these random models; the others stay
    python scripts/make_goldens.py --mlx    # hashes of quantized weights by mlx (pip install "mlx[cpu]")

Weights come from numpy seeds (tests/random_models.py), so only logits are kept: the last positions of four prompts.
Weights are scaled until the largest logit reaches 5, so that errors show.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))
sys.path.insert(0, str(TESTS.parent))
import random_models  # noqa: E402

LEAST_GAP = 1e-3  # between best and second logit, along greedy tokens


def load(directory: Path) -> transformers.PreTrainedModel:
    """The model, in float32. A new one for every prompt, because longrope keeps its angles."""
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    wrong = {kind: names for kind, names in loading.items() if names}
    if wrong:  # transformers only warns, and makes random numbers of what is missing
        sys.exit(f"{wrong}: make tests/random_models.py write the tensors that this architecture has.")
    return model.eval()


def logits(directory: Path, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return load(directory)(torch.tensor([ids]), use_cache=False).logits[0].numpy()


def greedy(directory: Path, ids: list[int], count: int = 24) -> tuple[list[int], float]:
    """Greedy tokens after a prompt, and the smallest gap between best and second logit on the way."""
    out, gap = list(ids), float("inf")
    for _ in range(count):
        last = np.sort(row := logits(directory, out)[-1])
        gap = min(gap, float(last[-1] - last[-2]))
        out.append(int(row.argmax()))
    return out[len(ids) :], gap


def mlx_goldens() -> None:
    """Write hashes of the output of mlx.core.quantize: packed values, scales, biases."""
    import mlx.core as mx

    cases = []
    for dtype, kind in (("f32", mx.float32), ("f16", mx.float16), ("bf16", mx.bfloat16)):
        values = mx.array(random_models.quantization_input(dtype)).astype(kind)
        for bits in (4, 8):
            for group in (32, 64, 128):
                packed, *rest = mx.quantize(values, group_size=group, bits=bits)
                bits_of = [np.array(a.view(mx.uint32 if dtype == "f32" else mx.uint16)) for a in rest]
                digests = [
                    hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest() for a in (np.array(packed), *bits_of)
                ]
                cases.append({"dtype": dtype, "bits": bits, "group": group, "sha256": digests})
    about = {"made_with": f"mlx {mx.__version__}, CPU", "cases": cases}
    (TESTS / "goldens_mlx.json").write_text(json.dumps(about, indent=1) + "\n")


def reference_keys() -> None:
    """Write the keys that transformers' config classes read, with their defaults, for every supported architecture."""
    from llamagpu.model.architectures import ARCHITECTURES

    found = {}
    for name in ARCHITECTURES:
        config = transformers.CONFIG_MAPPING[name]()
        declared = {key for base in type(config).__mro__ for key in getattr(base, "__annotations__", {})}
        found[name] = {k: v for k, v in sorted(config.to_dict().items()) if k in declared}
    about = {"made_with": f"transformers {transformers.__version__}", "architectures": found}
    (TESTS / "reference_keys.json").write_text(json.dumps(about, indent=1) + "\n")


def main() -> None:
    if "--mlx" in sys.argv:
        mlx_goldens()
        return
    wanted = sys.argv[1:] or list(random_models.CONFIGS)
    unknown = set(wanted) - set(random_models.CONFIGS)
    if unknown:
        sys.exit(f"CONFIGS in tests/random_models.py lacks {', '.join(sorted(unknown))}.")
    reference_keys()
    kept: dict[str, np.ndarray] = {}
    about: dict[str, object] = {
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, float32, CPU",
        "models": {},
    }
    if sys.argv[1:]:
        kept, about = load_file(TESTS / "goldens.safetensors"), json.loads((TESTS / "goldens.json").read_text())
    for seed, (name, config) in enumerate(random_models.CONFIGS.items(), 1):
        if name not in wanted:
            continue
        gain, largest = 1.0, 0.0
        with tempfile.TemporaryDirectory() as folder:
            while largest < 5:
                gain *= 1.2
                weights = random_models.tensors(config, seed, gain)
                directory = random_models.write_model(Path(folder), config, weights, tokenizer=False)
                probe = logits(directory, random_models.prompt(config, 31, seed))
                largest = float(np.abs(probe).max())
            columns = random_models.kept_columns(config)
            for length in random_models.PROMPTS:
                out = logits(directory, random_models.prompt(config, length, seed))[-random_models.LAST :]
                kept[f"{name}.{length}"] = np.ascontiguousarray(out[:, columns], np.float32)
                largest = max(largest, float(np.abs(out).max()))
            gap, prompt_seed = 0.0, seed
            while gap < LEAST_GAP:  # otherwise rounding could choose another token
                tokens, gap = greedy(directory, random_models.prompt(config, random_models.PROMPTS[-1], prompt_seed))
                prompt_seed += 100
        greedily = {"prompt_seed": prompt_seed - 100, "gap": gap, "tokens": tokens}
        facts = {"seed": seed, "gain": gain, "max_logit": largest, "greedy": greedily}
        about["models"][name] = facts  # type: ignore[index]
        print(name, f"gain {gain:.2f}, max|logit| {largest:.2f}, gap {gap:.1e}", flush=True)
    save_file(kept, TESTS / "goldens.safetensors")
    (TESTS / "goldens.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
