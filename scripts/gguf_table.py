"""docs/gguf.json and docs/gguf.md: how each tensor type of GGUF is held, how exactly, and files of each type beside
llama.cpp.

    python scripts/gguf_table.py                                        the exactness, and the page
    python scripts/gguf_table.py MODEL.gguf TEXT --quantizer PROGRAM    also the files; needs xllamacpp

PROGRAM is llama.cpp's llama-quantize. It makes a file of each type from MODEL.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT), str(ROOT / "scripts")]
import check_gguf  # noqa: E402
import gguf_files  # noqa: E402

from llamagpu.kernels.quantization import dequantize_rows, unpack  # noqa: E402
from llamagpu.model.sources.gguf import open_gguf  # noqa: E402
from llamagpu.model.sources.gguf.architectures import FAMILIES  # noqa: E402
from llamagpu.model.sources.gguf.blocks import BLOCKS, repack  # noqa: E402
from llamagpu.model.sources.gguf.pretokenizers import PRETOKENIZERS  # noqa: E402

COLUMNS, ROWS = 1024, 4096
LARGEST = 1000.0  # large enough that no scale is subnormal, which would leave fewer bits to round
TEXT = """# GGUF models

`python scripts/gguf_table.py` writes this page.

- Architectures (`general.architecture`): {families}.
- Tokenizers: SentencePiece (`llama`), and byte-level BPE (`gpt2`) with the pre-tokenizers {pres}.
- Tensor types: those of the table. All others are refused by name.
- Files: whole, or split in parts (`-00001-of-00003.gguf`).

## How tensor types are held

Every quantized type is repacked to affine groups while loading: `w = scale · q + bias`. The repacking is exact.
Values of 2 and 3 bits are held in 4, values of 5 and 6 bits in 8. The scales of K types are products that need float32.

| type | bits per weight in the file | held as | bits per weight held | from gguf's values | from exact values |
| --- | --- | --- | --- | --- | --- |
{rows}

`int4-g32-f16` has 4 bits, groups of 32, and float16 scales and biases; with `-z8` the bias is −8 · scale and not
stored. Errors are the largest of {count:,} weights in blocks of random bits, computed as kernels do (float32, product
and sum rounded), relative to the largest weight: from the float32 values of the package `gguf` (`gguf.dequantize`),
and from the exact values in float64.

Tensors of one matrix (q, k and v; gate and up) may have different types, as in Q4_K_M. They are then held in the
narrowest format that is exact for all: Q4_K with Q6_K in {mixed}, Q5_0 with Q8_0 in {legacy}.
"""
BESIDE = """
## Beside llama.cpp

`python scripts/gguf_table.py {name} TEXT --quantizer llama-quantize`: files that llama.cpp's own quantizer made of
{name} (through F32), with both engines after each of the first {positions} beginnings of TinyStories' validation
text, on the CPU. llama.cpp rounds activations to 8 bits where weights are quantized, and this engine does not: the best
tokens differ where two are about equally likely. Rows of {name} have 576 values, which the K types' blocks
of 256 do not divide, so llama.cpp puts most tensors of these files into Q4_0, Q5_0, Q5_1 or Q8_0.

| file | its tensors | MB | MB held | same best token (%) | perplexity | llama.cpp's |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
{rows}
"""
FILES = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_NL")
FILES += ("IQ4_XS",)
POSITIONS = 400


def exactness(dtype: str) -> dict[str, Any]:
    """How a quantized type is held."""
    kind = BLOCKS[dtype]
    affine = kind.affine
    data = gguf_files.blocks(np.random.default_rng(0), ROWS, COLUMNS, dtype, LARGEST)
    packed, scales, biases = repack(data, dtype)
    q = unpack(packed, affine.bits).reshape(ROWS, -1, affine.group).astype(np.float32)
    got = (q * scales.astype(np.float32)[..., None] + biases.astype(np.float32)[..., None]).reshape(ROWS, -1)
    expected, exact = gguf_files.values(data, dtype), dequantize_rows((packed, scales, biases), affine)
    errors = [float(np.abs(got - e).max() / np.abs(exact).max()) for e in (expected, exact)]
    stored, held = Fraction(kind.nbytes * 8, kind.values), Fraction(affine.row_bytes(256) * 8, 256)
    return {"type": dtype, "bits": float(stored), "held": str(affine), "held_bits": float(held), "errors": errors}


def beside(model: Path, text: Path, quantizer: str, kind: str) -> dict[str, Any]:
    """A file of a type, in both engines."""
    with tempfile.TemporaryDirectory() as folder:
        wide, made, scores = Path(folder) / "f32.gguf", Path(folder) / f"{kind}.gguf", Path(folder) / "scores.json"
        for source, target, to in ((model, wide, "F32"), (wide, made, kind)):
            command = [quantizer, "--allow-requantize", str(source), str(target), to]
            subprocess.run(command, check=True, capture_output=True)
        check_gguf.write_scores(made, scores, text, POSITIONS)
        found = check_gguf.compare_scores(made, json.loads(scores.read_text()))
        types = sorted({entry.dtype for entry in open_gguf(made).entries.values() if len(entry.shape) == 2})
        return found | {"file": kind, "types": types, "bytes": made.stat().st_size}


def page(found: dict[str, Any]) -> str:
    """The page of the results, as Markdown."""
    affines = {name: kind.affine for name, kind in BLOCKS.items()}
    common = affines["Q4_K"].common
    rows = [f"| {d} | {bits} | as stored | {bits} | 0 | 0 |" for d, bits in (("F32", 32), ("F16", 16), ("BF16", 16))]
    for r in found["exactness"]:
        shown = " | ".join("0" if e == 0 else f"{e:.1e}" for e in r["errors"])
        rows.append(f"| {r['type']} | {r['bits']:g} | `{r['held']}` | {r['held_bits']:g} | {shown} |")
    text = TEXT.format(
        families=", ".join(f"`{name}`" for name in sorted(FAMILIES)),
        pres=", ".join(f"`{name}`" for name in PRETOKENIZERS),
        rows="\n".join(rows),
        count=ROWS * COLUMNS,
        mixed=f"`{common([affines['Q4_K'], affines['Q6_K']])}`",
        legacy=f"`{common([affines['Q5_0'], affines['Q8_0']])}`",
    )
    lines = [
        f"| {r['file']} | {', '.join(r['types'])} | {r['bytes'] / 1e6:.1f} | {r['held'] / 1e6:.1f} "
        f"| {100 * r['same']:.1f} | {r['perplexity']:.3f} | {r['llama.cpp']:.3f} |"
        for r in found["files"]
    ]
    return text + BESIDE.format(name=found["model"], positions=POSITIONS - 1, rows="\n".join(lines))


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("--quantizer")
    args = parser.parse_args()
    path = ROOT / "docs" / "gguf.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"model": "", "files": []}
    found["exactness"] = [exactness(dtype) for dtype in BLOCKS]
    if args.quantizer is not None:
        found["model"], found["files"] = args.model.stem, []
        for kind in FILES:
            found["files"].append(beside(args.model, args.text, args.quantizer, kind))
            print(found["files"][-1], file=sys.stderr, flush=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
