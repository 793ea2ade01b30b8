"""docs/wgsl/ours/*.wgsl and docs/wgsl/ours.json: the project's own kernels, linked, for the page about WGSL.

    python scripts/make_wgsl_page.py

All of them are variants without subgroups and without f16, so that every browser with WebGPU compiles them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from llamagpu.gpu import Program  # noqa: E402
from llamagpu.gpu.linker import link  # noqa: E402

TARGET = ROOT / "docs" / "wgsl"


@dataclass(frozen=True)
class Shown:
    """A kernel on the page.

    ``grid`` (the number of workgroups) and ``params`` are formulas of the lesson's sizes: products of quotients, each
    division rounded up, and differences of them. ``names`` are the lesson's tensors where the shader's name differs.
    """

    program: Program
    grid: str
    params: dict[str, str]
    names: dict[str, str] = field(default_factory=dict)


WEIGHTS = ("weights", "f32"), ("fold", "plain"), ("words", "u32"), ("order", "plain")
ENDS = ("bias", "none"), ("epilogue", "store")
UNUSED = ("first", "groups", "sums", "eps", "columns", "heads", "kv_heads", "splits", "window", "cap", "bias_stride")
PRODUCT_PARAMS = dict.fromkeys(UNUSED, "0") | {
    "m": "m",
    "rows": "n",
    "k4": "k/4",
    "stride": "k/4",
    "x_stride4": "k/4",
    "out_stride": "n/4*4",
    "factor": "1",
}

SHOWN = {
    "scale": Shown(
        Program("elementwise", (("operation", "scale"),)), "count/4/64", {"count4": "count/4", "factor": "factor"}
    ),
    "gelu": Shown(Program("gelu", overrides=(("TANH", 0),)), "count/64", {"count": "count/4*4"}),
    "layer_norm": Shown(
        Program("layer_norm", (("reduce", "workgroup"),), (("WORKGROUP", 64),)),
        "rows",
        {"rows": "rows", "columns": "columns", "stride": "columns/4*4", "eps": "eps"},
    ),
    "product_rows": Shown(
        Program(
            "product_rows",
            (*WEIGHTS, ("share", "none"), ("source", "plain"), ("norm", "none"), *ENDS),
            (("VECTORS", 8),),
        ),
        "n/64*m/8",
        PRODUCT_PARAMS,
        {"weights_data": "w"},
    ),
    "product_tiled": Shown(
        Program("product_tiled", (*WEIGHTS, ("source", "plain"), *ENDS), (("DOWN", 4), ("ACROSS", 1))),
        "n/64*m/64",
        PRODUCT_PARAMS,
        {"weights_data": "w"},
    ),
    "attention": Shown(
        Program("attention", consts=(("D4", 16), ("QUERIES", 16))),
        "rows/16",
        {
            "rows": "rows",
            "positions": "positions",
            "heads": "1",
            "group": "1",
            "ahead": "positions-rows",
            "scale": "scale",
        },
    ),
}


def described(shown: Shown) -> dict[str, Any]:
    """What the page must know to run a kernel."""
    linked = link(shown.program)
    return {
        "program": shown.program.label,
        "sources": list(dict.fromkeys(f"shaders/{file}" for file, _ in linked.lines if file.endswith(".wgsl"))),
        "grid": shown.grid,
        "params": [[name, kind, shown.params[name]] for name, kind in linked.params],
        "bindings": [
            {"group": b.group, "binding": b.index, "type": b.kind, "name": shown.names.get(b.name, b.name)}
            for b in linked.bindings
        ],
        "overrides": dict(shown.program.overrides),
    }


def files() -> dict[str, str]:
    """The text of every file, by its path in docs/wgsl."""
    described_all = {name: described(shown) for name, shown in SHOWN.items()}
    return {"ours.json": json.dumps(described_all, indent=1) + "\n"} | {
        f"ours/{name}.wgsl": link(shown.program).code for name, shown in SHOWN.items()
    }


def main() -> None:
    """Write the files, and remove those of kernels that are no longer shown."""
    (TARGET / "ours").mkdir(exist_ok=True)
    made = files()
    for path in (TARGET / "ours").glob("*.wgsl"):
        if f"ours/{path.name}" not in made:
            path.unlink()
    for name, text in made.items():
        (TARGET / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
