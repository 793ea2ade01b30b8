"""``llamagpu verify``: a model's forward pass, compared with float64 at every intermediate."""

from __future__ import annotations

from typing import Any

import click

from llamagpu.cli.options import load_options, model_options
from llamagpu.cli.output import open_model, progress_bar, write


@click.command()
@click.argument("prompt", required=False)
@model_options
def verify(prompt: str | None, **options: Any) -> None:
    """Replay the first tokens of PROMPT layer by layer, and compare every intermediate with a float64 reference.

    The exit code is 1 if one departs by more than its kernel's tolerance; its layer and kernel are named.
    """
    from llamagpu.engine.verify import Seen, verify

    with open_model(load_options(options)) as llm:
        ids = llm.tokenize(prompt) if prompt else None
        seen: list[Seen] = []
        try:
            with progress_bar("verifying", "results") as progress:
                for found in verify(llm, ids):
                    seen.append(found)
                    if progress is not None:
                        progress(len(seen), len(seen), found.form)
        finally:
            write("".join(_table(seen)))


def _table(seen: list[Any]) -> list[str]:
    """A line for every intermediate of a form, with its largest error in any layer."""
    lines: list[str] = []
    for form in dict.fromkeys(s.form for s in seen):
        lines.append(f"{form}:\n")
        mine = [s.intermediate for s in seen if s.form == form]
        for name, kernel in dict.fromkeys((i.name, i.kernel) for i in mine):
            same = [i for i in mine if (i.name, i.kernel) == (name, kernel)]
            worst = max(same, key=lambda i: i.error)
            layer = "" if worst.layer is None else f" (layer {worst.layer})"
            lines.append(f"  ok  {name:16} {kernel:18} error {worst.error:.1e} of {worst.tolerance:.0e}{layer}\n")
    return lines
