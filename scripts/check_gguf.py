"""Compare greedy answers of a GGUF model with those of transformers, which reads the same file in float32.

    python scripts/check_gguf.py model.gguf --write answers.json    # needs transformers, torch, gguf and accelerate
    python scripts/check_gguf.py model.gguf --read answers.json     # needs llamagpu

Both parts may run in one environment or in two. The second one prints a line per prompt, and fails if an answer differs
from a token on at which the reference's best two logits are not within 1e-3.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

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
        cases.append({"prompt": prompt, "ids": ids, "answer": answer, "gaps": [a - b for a, b in best]})
        print(prompt, "->", tokenizer.decode(answer), file=sys.stderr)
    out.write_text(json.dumps(cases), encoding="utf-8")


def _prompt_ids(tokenizer, prompt: str) -> list[int]:  # type: ignore[no-untyped-def]
    if tokenizer.chat_template is None:
        return list(tokenizer(prompt)["input_ids"])
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def compare(model: Path, expected: Path, tokens: int) -> int:
    """The number of answers that differ without a tie."""
    from llamagpu import LLM

    wrong = 0
    cases = json.loads(expected.read_text(encoding="utf-8"))
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
    args = parser.parse_args()
    if args.write is not None:
        write(args.model, args.write, args.prompts, args.tokens)
    return min(1, compare(args.model, args.read, args.tokens)) if args.read is not None else 0


if __name__ == "__main__":
    sys.exit(main())
