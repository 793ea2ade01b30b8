"""Scores of lm-evaluation-harness beside those of its own model for transformers, on small tasks of this project.

    python scripts/eval_peers.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf docs   writes docs/lm-eval.json and .md
    python scripts/eval_peers.py --model DIR docs                             for a model in Hugging Face layout

It needs torch and transformers (the extra ``oracle``) and lm-eval (the extra ``eval``), and no network. Both engines
read the same directory in float32; a GGUF file is dequantized into a temporary one first. Then llamagpu runs again
with quantized weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TASKS = Path(__file__).resolve().parent / "lm_eval"
REFERENCE, OURS = "transformers float32", "llamagpu float32"
ENGINES = {REFERENCE: ("hf", "float32"), OURS: ("llamagpu", "float32"), "llamagpu int8": ("llamagpu", "int8")}
# Name, task, tokens that the model sees at a time, and whether prompts go through the chat template.
RUNS = (
    ("questions", "llamagpu_questions", 1024, False),
    ("letters", "llamagpu_letters", 1024, False),
    ("beginnings", "llamagpu_beginnings", 1024, False),
    ("beginnings, chat template", "llamagpu_beginnings", 1024, True),
    ("texts", "llamagpu_texts", 128, False),
)
COLUMNS = {"answers": "d", "equal": "d", "largest": ".1e", "mean": ".1e", "magnitude": ".1f"}
EXPLAINED = {
    "questions": "100 questions with four answers, each scored as text",
    "letters": "the same questions with lettered answers after three examples; continuations are one letter",
    "beginnings": "20 beginnings of sentences, continued greedily by up to 8 tokens",
    "beginnings, chat template": "the same as messages of a conversation; the answers are sentences",
    "texts": "6 texts in rolling windows of 128 tokens",
}


def dequantize(gguf: Path, out: Path) -> None:
    """Write a GGUF file's weights in float32, config and tokenizer as a directory in Hugging Face layout."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):  # a model with it refuses to be saved
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)


def measure(model: Path) -> dict[str, Any]:
    """Scores and answers of every engine in every run."""
    import lm_eval
    import torch
    import transformers
    from lm_eval.tasks import TaskManager

    import llamagpu
    from llamagpu.evaluation import harness

    tasks, lengths = TaskManager(include_path=str(TASKS)), sorted({length for _, _, length, _ in RUNS})
    engines: dict[str, Any] = {}
    for name, (kind, dtype) in ENGINES.items():
        engines[name] = {"runs": {}}
        for length in lengths:
            arguments = {"pretrained": str(model), "dtype": dtype, "max_length": length}
            if kind == "hf":
                from lm_eval.models.huggingface import HFLM

                lm = HFLM(**arguments, device="cpu", batch_size=1)
            else:
                lm = harness.HarnessModel(**arguments)
                engines[name]["adapter"] = str(lm.llm.device.adapter)
            for run in (r for r in RUNS if r[2] == length):
                print(f"{name}: {run[0]}", file=sys.stderr)
                engines[name]["runs"][run[0]] = _run(lm_eval.simple_evaluate, lm, tasks, run)
            if kind != "hf":
                lm.llm.close()
    versions = {m.__name__: m.__version__ for m in (lm_eval, transformers, torch, llamagpu)}
    return {"model": model.name, "versions": versions, "engines": engines}


def _run(evaluate: Any, lm: Any, tasks: Any, run: tuple[str, str, int, bool]) -> dict[str, Any]:
    _, task, _, chat = run
    found = evaluate(model=lm, tasks=[task], task_manager=tasks, apply_chat_template=chat, bootstrap_iters=0)
    scores = {
        key.split(",")[0]: value
        for key, value in found["results"][task].items()
        if isinstance(value, float) and "stderr" not in key
    }
    samples = sorted(found["samples"][task], key=lambda s: s["doc_id"])
    return {"scores": scores, "answers": [_answers(s["resps"]) for s in samples]}


def _answers(responses: list[Any]) -> list[Any]:
    """The responses to one item: [log-likelihood, greedy] of a continuation, [log-likelihood] of a text, or a text."""
    return [value if isinstance(value, str) else _numbers(value) for value in (response[0] for response in responses)]


def _numbers(value: Any) -> list[Any]:
    score, *greedy = value if isinstance(value, (list, tuple)) else (value,)
    return [round(score, 6), *greedy]


def differences(ours: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    """How the answers of a run differ: the number of equal texts or flags, and log-likelihoods in nats."""
    both = zip(ours["answers"], reference["answers"], strict=True)
    pairs = [pair for one in both for pair in zip(*one, strict=True)]
    out: dict[str, float] = {"answers": len(pairs)}
    if isinstance(pairs[0][0], str):
        return out | {"equal": sum(a == b for a, b in pairs)}
    if len(pairs[0][0]) == 2:
        out["equal"] = sum(a[1] == b[1] for a, b in pairs)
    off = [abs(a[0] - b[0]) for a, b in pairs]
    return out | {"largest": max(off), "mean": statistics.fmean(off), "magnitude": max(abs(b[0]) for _, b in pairs)}


def page(found: dict[str, Any]) -> str:
    """The page of the results."""
    engines, versions = found["engines"], found["versions"]
    names = list(engines)
    lines = [
        "# lm-evaluation-harness beside transformers",
        "",
        f"{found['model']}, evaluated by lm-evaluation-harness {versions['lm_eval']} with llamagpu "
        f"{versions['llamagpu']} ({engines[OURS]['adapter']}) and with the harness's own model for transformers "
        f"{versions['transformers']} (torch {versions['torch']}, CPU). All read the same directory.",
        "",
        "The tasks are in `scripts/lm_eval`. They are small, and say how well engines agree, not how good a model is:",
        "",
        *(f"- {name}: {EXPLAINED[name]}" for name, *_ in RUNS),
        "",
        "## Scores",
        "",
        "| run | metric | " + " | ".join(names) + " |",
        "| --- | --- |" + " ---: |" * len(names),
    ]
    for run, *_ in RUNS:
        for metric in engines[REFERENCE]["runs"][run]["scores"]:
            scores = (engines[name]["runs"][run]["scores"][metric] for name in names)
            lines.append(f"| {run} | {metric} | " + " | ".join(f"{s:.4f}" for s in scores) + " |")
    lines += [
        "",
        "## Answers beside transformers'",
        "",
        'Log-likelihoods are in nats. "Equal" counts the flag of greedy decoding, or the generated texts.',
        "",
        "| engine | run | answers | equal | largest difference | mean difference | largest log-likelihood |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in names[1:]:
        for run, *_ in RUNS:
            d = differences(engines[name]["runs"][run], engines[REFERENCE]["runs"][run])
            numbers = [f"{d[k]:{form}}" if k in d else "" for k, form in COLUMNS.items()]
            lines.append(f"| {name} | {run} | " + " | ".join(numbers) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the page and its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the directory of the page")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=Path)
    which.add_argument("--gguf", type=Path)
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    out = args.out.resolve()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        if args.gguf is None:
            model = args.model.resolve()
        else:
            model = Path(folder) / args.gguf.stem
            dequantize(args.gguf.resolve(), model)
        os.chdir(ROOT)  # the tasks name their files from there
        found = measure(model)
    (out / "lm-eval.json").write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "lm-eval.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
