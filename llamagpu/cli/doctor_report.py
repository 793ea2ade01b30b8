"""The report of ``llamagpu doctor`` as Markdown, to be pasted into an issue. It holds no paths of the user."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamagpu.kernels.survey import Failure, Survey

_MOST = 40  # failing cases in full


def markdown(facts: dict[str, Any], found: list[Survey]) -> str:
    """Versions, adapter, driver, features, limits and tuning; the failing cases; the cases that did not run; a table of
    all."""
    bad = [(s, f) for s in found for f in s.failures]
    missed = [(s, f) for s in found for f in s.skipped]
    passed, cases = sum(s.passed for s in found), sum(s.cases for s in found)
    lines = [
        "# llamagpu doctor",
        "",
        f"{passed} of {cases} cases passed, {len(bad)} failed, {len(missed)} did not run.",
        "",
        *_bullets(facts),
    ]
    if bad:
        lines += [
            "",
            "## Failed",
            "",
            *_table(("kernel", "case, seed", "error of tolerance", "linked shader"), _rows(bad)),
        ]
        lines += [f"{len(bad) - _MOST} more failed."] if len(bad) > _MOST else []
    if missed:
        rows = [(s.name, f"{f.dims}, seed {f.seed}", f.reason) for s, f in missed]
        lines += ["", "## Not run", "", *_table(("kernel", "case, seed", "reason"), rows)]
    rows = [(s.name, f"{s.passed} of {s.cases}", f"{s.worst:.1e} of {s.tolerance:.0e}") for s in found]
    lines += ["", "## All", "", *_table(("kernel", "passed", "error of tolerance"), rows)]
    return "\n".join(lines) + "\n"


def _bullets(facts: dict[str, Any]) -> list[str]:
    tuning = {k: v for k, v in facts["tuning"].items() if k != "lanes"}
    lanes = [f"  - {t['format']} {t['rows']} × {t['columns']}: {_pairs(t['cut'])}" for t in facts["tuning"]["lanes"]]
    return [
        f"- versions: {facts['versions']}, Python {platform.python_version()}",
        f"- system: {platform.system()} {platform.machine()}",
        f"- adapter: {facts['adapter']}",
        f"- driver: {facts['driver'] or 'unknown'}",
        f"- features: {', '.join(facts['features']) or 'none'}",
        f"- limits: {_pairs(facts['limits'])}",
        f"- tuning ({facts['tuning_from']}): {_pairs(tuning)}",
        *lanes,
        f"- model: {facts['model']}, dtype {facts['dtype']}",
    ]


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in values.items())


def _rows(bad: list[tuple[Survey, Failure]]) -> list[tuple[str, ...]]:
    return [
        (s.name, f"{f.dims}, seed {f.seed}", f.reason, "; ".join(f.programs) or "not linked") for s, f in bad[:_MOST]
    ]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(" ".join(c.replace("|", "\\|").split()) for c in cells) + " |"

    return [line(head), line(("---",) * len(head)), *(line(row) for row in rows)]
