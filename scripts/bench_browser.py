"""Compare this project's browser export with other engines in Chromium, and with this project in Python.

    scripts/peers/setup .peers browser                    once: installs the engines and writes the models
    python scripts/bench_browser.py --peers .peers docs   measures; writes docs/browser.json, docs/browser.md

In Chromium every turn is a new browser with one page: it loads the engine and measures it. Engines take turns, so a
drift of the machine affects all alike. In the same run, the export in Dawn for Node takes turns with this project in
Python, on the same driver. Engines that are missing or fail are named. Needs node, Chromium and Playwright.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "peers"), str(HERE.parent)]
# ruff: noqa: E402
from browser_turns import FLAGS, Page, serve_folders
from turns import NEW_MESA, Entry, about_machine, machine, measure, missing_and_versions, new_mesa, record, speed, stop

STORIES = HERE.parent / "weights" / "stories"
CHROMIUM, DAWN, PYTHON = "Chromium", "Dawn for Node", "Python"
BACKENDS = {"WebGPU": "webgpu", "CPU": "wasm"}
CONTEXT = 512  # tokens that the caches hold
SHORT, LONG = 8, 64  # tokens of the prompts of the decode test and the prefill test
TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play in the garden with her dog. One sunny "
    "day, they saw a big red ball under the old tree. The dog ran to the ball and pushed it with his nose. Lily "
    "laughed and threw it high up into the air, and the dog jumped after it."
)
DTYPES = {"f32": ("float32", "fp32"), "4-bit": ("int4", "q4")}  # the names of llamagpu and of transformers.js
COUNTS = {"stories": "--decode", "smollm2": "--decode-large"}  # the options that set the tokens to generate
TITLES = {"stories": "bundled, 2.8 M", "smollm2": "SmolLM2-135M"}


@dataclass
class Plan:
    """A model to measure.

    Attributes:
        source: what llamagpu reads, by format, and the dtype to hold it in.
        tokenizer: its tokenizer.json.
        decode: tokens to generate.
    """

    name: str
    source: dict[str, tuple[Path, str]]
    tokenizer: Path
    decode: int

    def prompts(self) -> dict[str, Any]:
        """The prompts of a job: ids, and the text that has exactly these ids."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.tokenizer))

        def cut(text: str, count: int) -> dict[str, Any]:
            ids = tokenizer.encode(text).ids[:count]
            text = tokenizer.decode(ids, skip_special_tokens=True)
            assert len(ids) == count, "the text is too short"
            assert tokenizer.encode(text).ids == ids, "the cut text has other tokens"
            return {"ids": ids, "text": text}

        return {"short": cut(TEXT, SHORT), "long": cut(TEXT, LONG)}


def plans(models: Path, o: argparse.Namespace) -> list[Plan]:
    """The models that were chosen."""
    stories = {format: (STORIES, dtype) for format, (dtype, _) in DTYPES.items()}
    smollm2 = {"4-bit": (models / "smollm2-4-bit.gguf", "auto")}  # its blocks are held as they are
    every = [
        Plan("stories", stories, STORIES / "tokenizer.json", o.decode),
        Plan("smollm2", smollm2, models / "smollm2" / "tokenizer.json", o.decode_large),
    ]
    return [plan for plan in every if plan.name in o.models.split(",")]


def export_sites(chosen: list[Plan], sites: Path) -> None:
    """Export every model in every format."""
    from llamagpu import export

    for plan in chosen:
        for format, (source, dtype) in plan.source.items():
            export(source, sites / f"{plan.name}-{format}", dtype=dtype)


@dataclass
class Places:
    """Where things are: the peers' folder, exported sites, caches of browsers, the server's address, Chromium."""

    peers: Path
    sites: Path
    profiles: Path
    address: str
    chromium: str
    limit: float


def pages(plan: Plan, format: str, places: Places) -> list[Entry]:
    """The engines in Chromium."""
    site, gguf = f"/sites/{plan.name}-{format}", f"/models/{plan.name}-{format}.gguf"
    tests, prompts = ("page",), plan.prompts()
    engines = [
        ("llamagpu", "WebGPU", site, format),
        ("transformers.js", "WebGPU", plan.name, DTYPES[format][1]),
        ("wllama", "WebGPU", gguf, format),
        ("transformers.js", "CPU", plan.name, DTYPES[format][1]),
        ("wllama", "CPU", gguf, format),
    ]
    out: list[Entry] = []
    for engine, backend, model, dtype in engines:
        job = prompts | {"engine": engine.removesuffix(".js"), "model": model, "dtype": dtype, "context": CONTEXT}
        job |= {"backend": BACKENDS[backend], "decode": plan.decode}
        profile = places.profiles / f"{plan.name}-{format}-{engine}-{backend}"
        place = {"address": places.address, "profile": profile, "executable": places.chromium}
        out.append(Page(engine, backend, format, CHROMIUM, [], tests, job=job, limit=places.limit, **place))
    return out


def processes(plan: Plan, format: str, places: Places) -> list[Entry]:
    """The export in Dawn for Node and this project in Python, both on the new Mesa."""
    site, (source, dtype) = f"{plan.name}-{format}", plan.source[format]
    npm = places.peers / "browser"
    about = npm / "node_modules" / "webgpu" / "package.json"
    version = json.loads(about.read_text(encoding="utf-8"))["version"] if about.exists() else ""
    job = plan.prompts() | {"decode": plan.decode, "context": CONTEXT}
    dawn = job | {"npm": str(npm), "version": version, "site": str(places.sites / site)}
    dawn |= {"address": f"{places.address}/sites/{site}"}
    python = job | {"model": str(source), "dtype": dtype}
    commands = {
        DAWN: [shutil.which("node") or "node", str(HERE / "peers" / "browser_dawn.mjs"), json.dumps(dawn)],
        PYTHON: [sys.executable, str(HERE / "peers" / "browser_python.py"), json.dumps(python)],
    }
    env, tests = new_mesa(places.peers), ("decode", "prompt")
    return [
        Entry(f"llamagpu, {where}", "WebGPU", format, NEW_MESA, command, tests, env, limit=places.limit)
        for where, command in commands.items()
    ]


def rows_of(plan: Plan, every: list[Entry]) -> list[dict[str, Any]]:
    """The entries' results, and how many of their first greedy tokens are llamagpu's of the same format."""
    expected: dict[str, list[int]] = {}
    out = []
    for entry in every:
        row = record(entry) | {"model": plan.name, "tokens": entry.tokens}
        if isinstance(entry, Page):
            row |= {"cold": entry.cold, "varied": entry.varied}
        pairs = enumerate(zip(expected.setdefault(entry.format, entry.tokens), entry.tokens, strict=False))
        row["same"] = next((i for i, (a, b) in pairs if a != b), len(entry.tokens))
        out.append(row)
    return out


def run(o: argparse.Namespace) -> dict[str, Any]:
    """Measure everything."""
    peers, load, rows = o.peers.resolve(), os.getloadavg()[0], []
    models = peers / "models" / "browser"
    chosen = plans(models, o)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:  # browsers may still write caches
        sites = Path(scratch) / "sites"
        sites.mkdir()
        export_sites(chosen, sites)
        folders = {"bench": HERE / "peers", "npm": peers / "browser" / "node_modules", "models": models, "sites": sites}
        with serve_folders(folders) as address:
            places = Places(peers, sites, Path(scratch) / "profiles", address, o.chromium, o.limit)
            for plan in chosen:
                every = [e for f in plan.source for e in (*pages(plan, f, places), *processes(plan, f, places))]
                try:
                    measure(every, o.rounds)
                finally:
                    stop(every)
                rows += rows_of(plan, every)
    decode = {plan.name: plan.decode for plan in chosen}
    about = {"machine": machine(), "load": load, "rounds": o.rounds, "flags": FLAGS}
    return about | {"decode": decode, "rows": rows}


def table(rows: list[dict[str, Any]], base: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    """A table of engines; ``base`` has the row that others are compared with, by model and format."""
    lines = [
        "| model | format | engine | decode t/s | × | prefill t/s | × | load (s) | same tokens |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        own = base.get((r["model"], r["format"]))
        cells = [TITLES[r["model"]], r["format"], f"{r['engine']}, {r['backend']}"]
        for test in ("decode", "prompt"):
            ratio = "" if own is None or own is r else f"{own[test]['median'] / r[test]['median']:.2f}"
            cells += [speed(r[test]), ratio]
        cells += [speed(r["load"]) if "load" in r else "", f"{r['same']} of {len(r['tokens'])}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def measured(result: dict[str, Any]) -> list[str]:
    """The lines of both tables."""
    rows = [r for r in result["rows"] if "decode" in r]
    browser, native = ([r for r in rows if ("load" in r) == has] for has in (True, False))
    ours = {(r["model"], r["format"]): r for r in browser if r["engine"] == "llamagpu"}
    python = {(r["model"], r["format"]): r for r in native if r["engine"].endswith(PYTHON)}
    return [
        "## In Chromium",
        "",
        *table(browser, ours),
        "",
        "`CPU` engines run in WebAssembly, without WebGPU, with the threads that they choose themselves.",
        "",
        "## In Dawn for Node, beside Python",
        "",
        f"Both on {NEW_MESA}. `×` is the speed of Python divided by the row's.",
        "",
        *table(native, python),
    ]


FORMATS = [
    "## What each engine holds",
    "",
    "- f32: float32 everywhere, but the KV cache of wllama is in f16, its default. So all greedy tokens should agree.",
    "- 4-bit, bundled model: llamagpu `int4`; transformers.js `q4`, which is MatMulNBits in groups of 32 with float32 "
    "scales, the embedding and the head too; wllama Q4_0. Each rounds in its own way, so tokens may differ.",
    "- 4-bit, SmolLM2-135M: a GGUF file of Q4_1 with a Q8_0 embedding, which llamagpu and wllama hold as it is; "
    "transformers.js rounds the same weights to its `q4`, in embedding and head too, so its tokens differ.",
    "- transformers.js computes the logits of the last position only (`prune_lm_head`), and has no f16: Chromium's "
    "software adapter lacks `shader-f16`.",
    "- wllama's WebGPU backend takes no adapter without `shader-f16`. wllama then runs on the CPU and does not say so.",
]


def page(result: dict[str, Any]) -> str:
    """The results in Markdown."""
    decode = ", ".join(f"{count} tokens ({TITLES[name]})" for name, count in result["decode"].items())
    counts = " ".join(f"{COUNTS[name]} {count}" for name, count in result["decode"].items())
    varied = [f"{r['engine']}, {r['backend']}, {r['format']}" for r in result["rows"] if r.get("varied")]
    lines = [
        "# In a browser, beside other engines",
        "",
        f"Decode is one greedy sequence after {SHORT} tokens: {decode}; the time of the first token is subtracted. "
        f"Prefill is a prompt of {LONG} tokens and one new token. Load is the time from opening the page to the first "
        "token, with the files in the caches of the browser and the engine. Every turn is a new browser with one "
        f"page. Figures are medians of {result['rounds']} turns, taken alternately in one run, with the smallest and "
        "largest in brackets. `×` is llamagpu's speed divided by the row's. `same tokens` counts the first greedy "
        "tokens that are llamagpu's in Chromium.",
        "",
        f"{about_machine(result['machine'])} Chromium's WebGPU runs on SwiftShader. Before the run, the load average "
        f"was {result['load']:.1f}.",
        "",
        *measured(result),
        "",
        *FORMATS,
        *missing_and_versions(result["rows"]),
        *(["", f"Greedy tokens varied from turn to turn: {'; '.join(varied)}."] if varied else []),
        "",
        f"Chromium's flags: `{' '.join(result['flags'])}`, headless.",
        "",
        f"Measured by `python scripts/bench_browser.py docs --rounds {result['rounds']} --models "
        f"{','.join(result['decode'])} {counts}`; `scripts/peers/setup .peers browser` installs the engines and "
        "writes the models.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="a directory for browser.json and browser.md")
    parser.add_argument("--peers", type=Path, default=Path(".peers"), help="the directory that peers/setup made")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decode", type=int, default=48, help="tokens to generate with the bundled model")
    parser.add_argument("--decode-large", type=int, default=8, help="tokens to generate with SmolLM2-135M")
    parser.add_argument("--models", default="stories,smollm2", help="models to measure, separated by commas")
    parser.add_argument("--limit", type=float, default=900, help="seconds that a turn may take")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium", help="the browser")
    o = parser.parse_args()
    o.out.mkdir(parents=True, exist_ok=True)
    result = run(o)
    (o.out / "browser.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (o.out / "browser.md").write_text(page(result), encoding="utf-8")
    print(page(result))


if __name__ == "__main__":
    main()
