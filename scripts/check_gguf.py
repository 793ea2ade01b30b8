"""Compare a GGUF model with other engines on the same file.

Greedy answers with transformers, in float32:

    python scripts/check_gguf.py model.gguf --write answers.json    # needs transformers, torch, gguf and accelerate
    python scripts/check_gguf.py model.gguf --read answers.json     # needs llamagpu

The first tokens of a text with llama.cpp, which rounds activations to 8 bits:

    python scripts/check_gguf.py model.gguf --text text.txt --write scores.json    # needs xllamacpp
    python scripts/check_gguf.py model.gguf --read scores.json

Both parts may run in one environment or in two. The second one fails if an answer differs from a token on at which the
reference's best two logits are not within 1e-3; beside llama.cpp, if fewer than 97 % of the best tokens are equal or
the perplexity differs by more than 1 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

PROMPTS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "List three uses of a paper clip.",
    "Why is the sky blue?",
    "Translate 'good morning' into Spanish.",
    "What is 17 + 25?",
    "Explain photosynthesis in one sentence.",
    "Give me a Python function that reverses a string.",
    "Who wrote Romeo and Juliet?",
    "Name a planet with rings.",
    "Summarize: The cat sat on the mat because it was warm.",
    "What do bees make?",
    "Tell me a fact about penguins.",
    "How do I boil an egg?",
    "What is the opposite of 'ancient'?",
    "Continue the series: 2, 4, 8, 16,",
    "Ist 7 eine Primzahl?",
    "Describe the colour red to someone who cannot see.",
    "What is JSON?",
    "Say hello in five languages: français, 日本語, español …",
)
TIE = 1e-3
LISTED = 4000  # log-probabilities that llama.cpp lists; a rarer token counts for neither side


def write(model: Path, out: Path, count: int, tokens: int) -> None:
    """The prompts' ids, transformers' greedy ids, and the gap between its best two logits at each."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
    loaded = AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.float32).eval()
    cases = []
    for prompt in PROMPTS[:count]:
        ids = _prompt_ids(tokenizer, prompt)
        with torch.no_grad():
            made = loaded.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=tokens,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
        best = [torch.topk(step[0].float(), 2).values.tolist() for step in made.logits]
        answer = made.sequences[0, len(ids) :].tolist()
        cases.append({"prompt": prompt, "ids": ids, "answer": answer, "gaps": [round(a - b, 4) for a, b in best]})
        print(prompt, "->", tokenizer.decode(answer), file=sys.stderr)
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    out.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def write_scores(model: Path, out: Path, text: Path, count: int) -> None:
    """llama.cpp's best token after each beginning of a text, and the log-probability of the token that follows."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(model), count + 16, 1, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)

    def post(path: str, body: dict[str, Any]) -> Any:
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        return json.loads(
            urllib.request.urlopen(urllib.request.Request(server.listening_address + path, data, kind)).read()
        )

    words = text.read_text(encoding="utf-8")[: 8 * count]
    ids = post("/tokenize", {"content": words, "add_special": True})["tokens"][:count]
    best, scores = [], []
    for at in range(1, len(ids)):
        asked = {"prompt": ids[:at], "n_predict": 1, "temperature": 0, "n_probs": LISTED, "cache_prompt": True}
        top = post("/completion", asked)["completion_probabilities"][0]["top_logprobs"]
        best.append(top[0]["id"])
        scores.append(next((t["logprob"] for t in top if t["id"] == ids[at]), None))
    out.write_text(json.dumps({"ids": ids, "best": best, "scores": scores}), encoding="utf-8")


def compare_scores(model: Path, case: dict[str, Any]) -> dict[str, Any]:
    """The share of best tokens that agree with llama.cpp, and both perplexities."""
    import numpy as np

    from llamagpu import LLM

    ids, listed = case["ids"], [i for i, s in enumerate(case["scores"]) if s is not None]
    with LLM(model, kv_dtype="float32") as llm:
        logits, held = llm.logits(ids)[:-1].astype(np.float64), llm.sizes.weights
    top = logits.max(axis=1, keepdims=True)
    scores = (logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True)))[range(len(ids) - 1), ids[1:]]
    same = float(np.mean(logits.argmax(axis=1) == case["best"]))
    ours, theirs = (float(np.exp(-np.mean(s))) for s in (scores[listed], [case["scores"][i] for i in listed]))
    return {"positions": len(ids) - 1, "same": same, "perplexity": ours, "llama.cpp": theirs, "held": held}


def _prompt_ids(tokenizer, prompt: str) -> list[int]:  # type: ignore[no-untyped-def]
    if tokenizer.chat_template is None:
        return list(tokenizer(prompt)["input_ids"])
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def compare(model: Path, cases: list[dict[str, Any]], tokens: int) -> int:
    """The number of answers that differ without a tie."""
    from llamagpu import LLM

    wrong = 0
    with LLM(model, kv_dtype="float32") as llm:
        for case in cases:
            answer = [i for i in case["answer"] if i not in llm.config.eos_token_id][:tokens]
            result = llm.generate(case["ids"], max_tokens=max(1, len(answer)))
            got = list(result.token_ids)[: len(answer)]
            at = next((i for i, (a, b) in enumerate(zip(answer, got, strict=False)) if a != b), len(answer))
            same = got == answer
            verdict = "equal" if same else f"differs at token {at}, where the gap is {case['gaps'][at]:.2g}"
            wrong += not same and case["gaps"][at] > TIE
            print(f"{len(answer):3} tokens {verdict}: {case['prompt']}")
    print(f"{len(cases)} prompts, {wrong} wrong")
    return wrong


def main() -> int:
    """Parse the arguments and run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--read", type=Path)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--positions", type=int, default=400)
    args = parser.parse_args()
    if args.write is not None and args.text is not None:
        write_scores(args.model, args.write, args.text, args.positions)
    elif args.write is not None:
        write(args.model, args.write, args.prompts, args.tokens)
    if args.read is None:
        return 0
    expected = json.loads(args.read.read_text(encoding="utf-8"))
    if isinstance(expected, dict):
        found = compare_scores(args.model, expected)
        print(
            f"{found['positions']} positions: {found['same']:.1%} of the best tokens equal, "
            f"perplexity {found['perplexity']:.3f} and {found['llama.cpp']:.3f}"
        )
        return int(found["same"] < 0.97 or abs(found["perplexity"] / found["llama.cpp"] - 1) > 0.01)
    return min(1, compare(args.model, expected, args.tokens))


if __name__ == "__main__":
    sys.exit(main())
