#!/usr/bin/env python3
"""Make docs/structured-output.json and docs/structured-output.md: are the texts of 200 schemas valid?

    python scripts/check_shapes.py docs [--gguf FILE] [--every 1] [--tokens 96]

Each schema of tests/schemas.py is asked of a model greedily and with draws, alone and in batches of 8. A finished text
must be JSON that `jsonschema` finds valid; a cut one must say so. The models are a random Llama of 384 tokens, whose
tokenizer spells bytes, and a GGUF file, of which `--every N` takes every Nth schema.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jsonschema

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
from random_models import config, tensors, write_model  # noqa: E402
from schemas import KINDS, SCHEMAS  # noqa: E402

from llamagpu import LLM  # noqa: E402
from llamagpu.version import __version__  # noqa: E402

BATCH = 8
ROUNDS = 7  # of the comparison of masked and free tokens
DRAWS = {"greedy": {}, "sampled": {"temperature": 1.0, "seed": 1}}
RANDOM = config(vocab_size=384, max_position_embeddings=1024)


def ask(llm: LLM, names: list[str], batch: int, tokens: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What became of each schema: its name, ``valid``, ``cut`` or what is wrong, and the new tokens."""
    rows = []
    for group in _batched(names, batch):
        items: list[Any] = [{"prompt": f"An example of {n} in JSON: ", "json_schema": SCHEMAS[n]} for n in group]
        for name, result in zip(group, llm.generate(items, max_tokens=tokens, **settings), strict=True):
            rows.append({"schema": name, "outcome": _outcome(name, result), "tokens": result.completion_tokens})
    return rows


def _batched(names: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(names[i : i + size]) for i in range(0, len(names), size)]


def _outcome(name: str, result: Any) -> str:
    if result.finish_reason == "length":
        return "cut"
    try:
        jsonschema.Draft202012Validator(SCHEMAS[name]).validate(json.loads(result.text))
    except (ValueError, jsonschema.ValidationError) as e:
        return f"wrong: {e}"[:200]
    return "valid"


def measure(llm: LLM, label: str, names: list[str], tokens: int) -> list[dict[str, Any]]:
    """A row for each way to ask."""
    out = []
    for (draw, settings), batch in itertools.product(DRAWS.items(), (1, BATCH)):
        start = time.perf_counter()
        rows = ask(llm, names, batch, tokens, settings)
        seconds = time.perf_counter() - start
        kinds = {k: [r["outcome"] for r in rows if r["schema"].rsplit("-", 1)[0] == k] for k in _kinds()}
        out.append(
            {
                "model": label,
                "draw": draw,
                "batch": batch,
                "asked": len(rows),
                "valid": sum(r["outcome"] == "valid" for r in rows),
                "cut": sum(r["outcome"] == "cut" for r in rows),
                "wrong": [r for r in rows if r["outcome"].startswith("wrong")],
                "cut_by_kind": {k: v.count("cut") for k, v in kinds.items() if "cut" in v},
                "tokens": sum(r["tokens"] for r in rows),
                "seconds": seconds,
            }
        )
        print({k: v for k, v in out[-1].items() if k != "cut_by_kind"}, file=sys.stderr)
    return out


def cost(llm: LLM, label: str) -> dict[str, Any]:
    """The time of a token whose grammar allows all, beside that of a token without one: medians of interleaved rounds,
    and their ratio."""
    kinds: dict[str, dict[str, Any]] = {"free": {}, "masked": {"regex": r"[\s\S]*"}}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for round in range(ROUNDS + 1):
        for kind, settings in kinds.items():
            result = llm.generate("Once upon a time", max_tokens=64, ignore_eos=True, **settings)
            if round:  # the first one compiles
                seconds[kind].append(result.timings.decode_s / (result.completion_tokens - 1))
    free, masked = (statistics.median(seconds[kind]) for kind in kinds)
    found = {"model": label, "free_ms": 1e3 * free, "masked_ms": 1e3 * masked, "ratio": masked / free}
    print(found, file=sys.stderr)
    return found


def _kinds() -> list[str]:
    return [kind.__name__ for kind in KINDS]


def page(found: dict[str, Any]) -> str:
    """The text of docs/structured-output.md."""
    lines = [
        "# Structured output",
        "",
        "`json_schema`, `json_object`, `regex`, `choices` and `grammar` say what a text must look like: keyword",
        "arguments of `generate`, `stream` and `chat`, settings of an item of a list and of a job's row, options of",
        "`llamagpu generate` and `chat` (`--schema`, `--json-object`, `--regex`, `--choice`, `--grammar`), and",
        "`response_format` of the server. They need the extra `guided`, which is",
        "[llguidance](https://github.com/guidance-ai/llguidance). A text has one shape at most.",
        "",
        "- A schema is a dictionary, its JSON text, a Pydantic model, a dataclass, a TypedDict or another type with",
        "  hints. Keywords that are unknown or not supported are refused by name. So are schemas that nothing",
        "  satisfies, that never end, or that are too large to compile in a few seconds.",
        "- JSON comes as `json.dumps` writes it: `, ` and `: ` between, and no other whitespace. Free whitespace lets",
        "  small models write spaces without end. Properties come in the order of the schema.",
        "- Nothing bounds an integer or a text but the schema (`maximum`, `maxLength`, `maxItems`) and `max_tokens`.",
        "  A text that `max_tokens` cuts is the beginning of one, and its `finish_reason` is `length`.",
        "- A text ends when its grammar does, with `finish_reason` `stop`. Where it may end or go on, the model",
        "  decides by its stop tokens; with `ignore_eos` it goes on while it can.",
        "- The grammar holds for the text as it is returned. Stop strings still cut it.",
        "- Log-probabilities are those of the raw logits.",
        "- Tokens of which there is only one way, such as the keys of an object, share a step.",
        "- A model that cannot write a shape refuses it and names the characters that its vocabulary lacks.",
        "- `grammar` is llguidance's variant of Lark, `regex` the syntax of Rust's regex, without look-around.",
        "- In `regex`, `\\d`, `\\w` and `\\s` match ASCII only (`\\p{Nd}` matches the digits of all scripts). So do",
        "  `\\d` and `\\w` in a schema's `pattern`. In `grammar` they match all scripts; write `[0-9]` there.",
        "",
        "```python",
        "import json",
        "from dataclasses import dataclass",
        "from typing import Literal",
        "",
        "from llamagpu import LLM",
        "",
        "",
        "@dataclass",
        "class Pet:",
        "    name: str",
        '    kind: Literal["cat", "dog"]',
        "",
        "",
        'with LLM("owner/name") as llm:',
        '    result = llm.chat([{"role": "user", "content": "Invent a pet."}], json_schema=Pet)',
        "pet = Pet(**json.loads(result.text))",
        "```",
        "",
        "## 200 schemas",
        "",
        "The schemas of `tests/schemas.py` are asked greedily and with draws at temperature 1, alone and in batches",
        f"of {BATCH}, with at most {found['tokens']} tokens. `valid` counts finished texts that parse and that",
        "`jsonschema` finds valid, `wrong` the other finished ones. The random Llama has random weights and a",
        "vocabulary of 384 tokens.",
        "",
        "| model | draw | batch | asked | valid | cut by the limit | wrong |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in found["rows"]:
        counts = f"{r['asked']} | {r['valid']} | {r['cut']} | {len(r['wrong'])}"
        lines.append(f"| {r['model']} | {r['draw']} | {r['batch']} | {counts} |")
    lines += [
        "",
        "## The cost of a mask",
        "",
        "A grammar that allows every token, beside no grammar: milliseconds of a token, medians of interleaved rounds.",
        "",
        "| model | without | with a mask | ratio |",
        "| --- | ---: | ---: | ---: |",
    ]
    for c in found["costs"]:
        lines.append(f"| {c['model']} | {c['free_ms']:.2f} | {c['masked_ms']:.2f} | {c['ratio']:.2f} |")
    lines += [
        "",
        f"llamagpu {found['version']} on {found['adapter']}. Made by `python scripts/check_shapes.py docs --gguf FILE "
        f"--every {found['every']} --tokens {found['tokens']}`; `--every` holds for the GGUF model.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Ask both models, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=96)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "random", RANDOM, tensors(RANDOM, 0))
        with LLM(model) as llm:
            adapter = str(llm.device.adapter)
            rows += measure(llm, "random Llama", list(SCHEMAS), given.tokens)
    with LLM() as llm:
        costs = [cost(llm, "the bundled model")]
    if given.gguf is not None:
        with LLM(given.gguf) as llm:
            costs.append(cost(llm, given.gguf.stem))
            rows += measure(llm, given.gguf.stem, list(SCHEMAS)[:: given.every], given.tokens)
    found = {"version": __version__, "adapter": adapter, "tokens": given.tokens, "every": given.every}
    found |= {"rows": rows, "costs": costs}
    (given.out / "structured-output.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (given.out / "structured-output.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
