"""This project: decode after a prompt of one token, and prefill of whole prompts."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from runner import LLAMAGPU_DTYPES, options, serve

from llamagpu import gpu
from llamagpu.bench import measure
from llamagpu.version import __version__

if __name__ == "__main__":
    o = options()
    with measure.open_subject(None, "smollm2-135m", dtype=LLAMAGPU_DTYPES[o.dtype]) as subject:
        serve(
            f"{subject.device.adapter}, {subject.device.adapter.driver}",
            f"llamagpu {__version__}, {gpu.version()}",
            {
                "prompt": (o.prompt, lambda: subject.generate([subject.prompt(o.prompt)], 1)),
                "decode": (o.decode, lambda: subject.generate([subject.prompt(1)], o.decode)),
            },
        )
