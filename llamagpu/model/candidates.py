"""Divisions of ``product_lanes`` that the tuner tries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from llamagpu.gpu import Lanes

# Lanes, workgroup and pieces ahead, each with 1, 2 or 4 rows. On short rows more lanes would gain little for one vector
# and lose much for several.
_SHORT = 6144  # columns
_TEAMS_SHORT = ((32, 128, 4), (32, 256, 2), (32, 128, 8))
_TEAMS_LONG = ((64, 256, 4), (128, 256, 4))
_ROWS = (1, 2, 4)
_PASSES = (2, 4, 8)


def cuts_for(columns: int) -> list[Lanes]:
    """The divisions to try for rows of this length."""
    teams = _TEAMS_SHORT if columns < _SHORT else _TEAMS_LONG
    return _whole(Lanes(lanes, True, rows, ahead, workgroup) for lanes, workgroup, ahead in teams for rows in _ROWS)


def passes_for(cut: Lanes, columns: int) -> list[Lanes]:
    """The divisions with several passes to try for rows of this length, in the cut's order of additions. Empty if the
    lanes cannot hold a vector."""
    return _whole(replace(cut, passes=n, rows=rows) for n in _PASSES for rows in _ROWS) if cut.holds(columns) else []


def _whole(cuts: Iterable[Lanes]) -> list[Lanes]:
    """Those whose workgroups take a multiple of four rows."""
    return [c for c in cuts if c.workgroup // c.lanes * c.rows % 4 == 0]
