"""Charts of measurements, by matplotlib (the extra ``plot``). Backgrounds are transparent and colors have a middle
lightness, so that charts are readable on light and on dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from llamagpu.errors import UsageError

if TYPE_CHECKING:
    from llamagpu.bench.profile import Line, Profile
    from llamagpu.bench.yardsticks import Yardsticks

INK = "#787878"  # at least 4:1 against white and against the usual dark pages
COLORS = ("#2f8fd8", "#d9742b", "#3aa35b", "#b86bd1", "#c9a227", "#d1495b", "#5aa9a3", "#8c7be0", "#a0785a")

_LABEL_POINTS = 8  # the size of names beside points


def check_plot(path: Path | None) -> None:
    """Raises UsageError if a chart cannot be written: unknown file type, no such directory, or no matplotlib."""
    if path is None:
        return
    if path.suffix.lower() not in (".svg", ".png", ".pdf"):
        raise UsageError(f"{path} is not a chart file.", "Its name must end in .svg, .png or .pdf.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no directory {path.parent} for the chart.", "", "Make it first.")
    _pyplot()


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise UsageError("Charts need matplotlib.", "It is not installed.", "pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK}
    more = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "llamagpu", "axes.axisbelow": True}
    pyplot.rcParams.update(style | more | {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10})
    return pyplot


def _save(figure: Any, path: Path) -> None:
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, transparent=True, dpi=150, bbox_inches="tight", metadata=metadata)
    _pyplot().close(figure)


def _bars(
    axes: Any,
    names: Sequence[str],
    values: Sequence[float],
    colors: Sequence[str],
    notes: Sequence[str],
    ends: Sequence[float] | None = None,
) -> None:
    """Horizontal bars from top to bottom, each with a note at its end (or at its place in ``ends``)."""
    places = range(len(names))
    axes.barh(places, values, color=colors, height=0.72)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.3)
    for place, end, note in zip(places, ends or values, notes, strict=True):
        axes.annotate(note, (end, place), xytext=(4, 0), textcoords="offset points", va="center", color=INK)
    axes.grid(axis="x", color=INK, alpha=0.25)


def bench_chart(records: list[dict[str, Any]], path: Path) -> None:
    """Tokens a second of every test, and their shares of the adapter's yardsticks."""
    pyplot = _pyplot()
    kinds = [rows for rows in ([r for r in records if r["n_prompt"]], [r for r in records if r["n_gen"]]) if rows]
    heights = [len(rows) for rows in kinds]
    figure, panels = pyplot.subplots(
        len(kinds), 1, figsize=(7.5, 1.2 + 0.34 * sum(heights) + 0.5 * len(kinds)), height_ratios=heights, squeeze=False
    )
    dtypes = list(dict.fromkeys(r["dtype"] for r in records))
    for axes, rows in zip(panels[:, 0], kinds, strict=True):
        names = [f"{r['dtype']}  {r['test']}" for r in rows]
        colors = [COLORS[dtypes.index(r["dtype"]) % len(COLORS)] for r in rows]
        if rows[0]["n_prompt"]:
            of = [f"{r['macs_fraction']:.0%} of the multiply-adds" for r in rows]
        else:
            of = [f"{r['bandwidth_fraction']:.0%} of copy, {r['macs_fraction']:.0%} of multiply-adds" for r in rows]
        notes = [f"{r['avg_ts']:.4g}  ({share})" for r, share in zip(rows, of, strict=True)]
        _bars(axes, names, [r["avg_ts"] for r in rows], colors, notes)
        axes.set_xlim(0, max(r["avg_ts"] for r in rows) * 2)
        axes.set_title("prompt, tokens a second" if rows[0]["n_prompt"] else "generation, tokens a second", loc="left")
    figure.suptitle(f"{records[0]['model_filename']} on {records[0]['gpu_info']}", x=0.01, ha="left", fontsize=11)
    figure.tight_layout()
    _save(figure, path)


def profile_chart(found: Profile, sticks: Yardsticks, path: Path) -> None:
    """Three panels: kernels under the roofline (Williams et al. 2009), their share of the time, and a timeline."""
    pyplot = _pyplot()
    lines = found.lines[: len(COLORS)]
    colors = {line.kernel: COLORS[i] for i, line in enumerate(lines)}
    figure, panels = pyplot.subplots(3, 1, figsize=(8.5, 9.5), height_ratios=(5, 0.55 * len(lines) + 1, 2))
    _roofline(panels[0], found, sticks, colors)
    names = [f"{line.kernel} ({line.calls})" for line in lines]
    notes = [f"{line.share:.1%}, {line.seconds * 1e3:.3g} ms" for line in lines]
    _bars(panels[1], names, [line.share * 100 for line in lines], [colors[line.kernel] for line in lines], notes)
    panels[1].set_title("share of the GPU's time, %  (dispatches)", loc="left")
    _timeline(panels[2], found, colors)
    figure.suptitle(found.what, x=0.01, ha="left", fontsize=11)
    figure.tight_layout()
    _label_points(panels[0], found, sticks, colors)
    _save(figure, path)


def _roofline(axes: Any, found: Profile, sticks: Yardsticks, colors: dict[str, str]) -> None:
    points = [line for line in found.lines if line.read_bytes and line.macs]
    knee = sticks.multiply_adds / sticks.bandwidth
    low = min([knee, *(p.macs / p.read_bytes for p in points)]) / 4
    high = max([knee, *(p.macs / p.read_bytes for p in points)]) * 4
    axes.loglog([low, knee, high], [low * sticks.bandwidth, sticks.multiply_adds, sticks.multiply_adds], color=INK)
    for p in points:
        size = 30 + 400 * p.share
        axes.scatter(*_place(p), s=size, color=colors.get(p.kernel, INK), alpha=0.85, linewidths=0)
    axes.set_xlim(low, high * 8)
    axes.set_xlabel("multiply-adds per byte of weights and cache read")
    axes.set_ylabel("multiply-adds a second")
    roof = f"copy {sticks.bandwidth / 1e9:.3g} GB/s, multiply-adds {sticks.multiply_adds / 1e9:.4g} G/s"
    axes.set_title(f"kernels under the roofline ({roof})", loc="left")
    axes.grid(color=INK, alpha=0.2)


def _place(line: Line) -> tuple[float, float]:
    return line.macs / line.read_bytes, line.macs / line.seconds


def _label_points(axes: Any, found: Profile, sticks: Yardsticks, colors: dict[str, str]) -> None:
    """Names in a column beside the points of the roofline, as near to their heights as possible without overlap. The
    layout must be final, because positions are computed in points of the page."""
    lines = [line for line in found.lines if line.read_bytes and line.macs]
    if not lines:
        return
    page = axes.figure.dpi / 72
    spots = [axes.transData.transform(_place(line)) / page for line in lines]
    bottom, top = axes.bbox.y0 / page, axes.bbox.y1 / page
    heights = spread([y for _, y in spots], _LABEL_POINTS * 1.4, bottom + _LABEL_POINTS, top - _LABEL_POINTS)
    column = max(x for x, _ in spots) + 24
    leader = {"arrowstyle": "-", "relpos": (0, 0.5), "linewidth": 0.6, "alpha": 0.7, "shrinkA": 1, "shrinkB": 0}
    for line, (x, y), height in zip(lines, spots, heights, strict=True):
        at, color = _place(line), colors.get(line.kernel, INK)
        reached = at[1] / min(sticks.multiply_adds, at[0] * sticks.bandwidth)
        axes.annotate(
            f"{line.kernel}: {reached:.0%}",
            at,
            xytext=(column - x, height - y),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=_LABEL_POINTS,
            arrowprops=leader | {"color": color},
        )


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights from ``low`` to ``high``, at least ``gap`` apart, as near to ``wanted`` as possible."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[list[float]] = []  # heights minus the gaps below them; a group is placed at its mean
    for place, i in enumerate(order):
        groups.append([wanted[i] - place * gap])
        while len(groups) > 1 and fmean(groups[-2]) >= fmean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    base = [fmean(group) for group in groups for _ in group]
    highest = high - (len(wanted) - 1) * gap
    out = dict(zip(order, (max(low, min(b, highest)) + place * gap for place, b in enumerate(base)), strict=True))
    return [out[i] for i in range(len(wanted))]


def _timeline(axes: Any, found: Profile, colors: dict[str, str]) -> None:
    """The first run: the host's spans above, the GPU's below."""
    from llamagpu.bench.profile import line_name

    line = found.timeline
    kernels = line.kernels[: len(line.kernels) // found.runs]
    host = line.host[: len(line.host) // found.runs]
    start = min(span.begin for span in host)
    whole = (max(span.end for span in host) - start) * 1e3
    for span, dispatch in kernels:
        place = (span.begin - start) * 1e3, (span.end - span.begin) * 1e3
        axes.broken_barh([place], (0, 0.8), color=colors.get(line_name(dispatch), INK), linewidth=0)
    for i, span in enumerate(host):
        place = (span.begin - start) * 1e3, (span.end - span.begin) * 1e3
        axes.broken_barh([place], (1, 0.8), color=INK, alpha=(0.9, 0.65, 0.4)[i % 3], linewidth=0)
        if place[1] > 0.1 * whole:  # a narrower span has no room for its name
            axes.annotate(span.name, (place[0] + place[1] / 2, 1.9), ha="center", fontsize=8, color=INK)
    axes.set_title("timeline of one run; on the host: " + ", ".join(dict.fromkeys(s.name for s in host)), loc="left")
    axes.set_yticks([0.4, 1.4], ["GPU", "host"])
    axes.set_ylim(-0.1, 2.3)
    axes.set_xlabel(f"ms of one run (GPU and host clocks agree to ±{line.uncertainty * 1e6:.0f} µs)")
    axes.grid(axis="x", color=INK, alpha=0.25)


def peers_chart(result: dict[str, Any], path: Path) -> None:
    """Tokens a second of several engines (``scripts/bench_peers.py``): decode and prefill, grouped by format."""
    pyplot = _pyplot()
    engines = list(dict.fromkeys(r["engine"] for r in result["rows"]))
    formats = list(dict.fromkeys(r["format"] for r in result["rows"]))
    rows = sorted(
        (r for r in result["rows"] if "failure" not in r),
        key=lambda r: (formats.index(r["format"]), r["backend"] == "CPU", r["driver"], engines.index(r["engine"])),
    )
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 1.2 + 0.29 * len(rows)), sharey=True)
    names = [f"{r['engine']}, {r['backend']}" + (f", {r['driver']}" if r["driver"] else "") for r in rows]
    names = [f"{name}   {r['format']}" for name, r in zip(names, rows, strict=True)]
    for axes, test, title in zip(panels, ("decode", "prompt"), ("decode", "prefill"), strict=True):
        values = [r[test]["median"] for r in rows]
        samples = [r[test]["samples"] for r in rows]
        notes = [f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in values]
        ends = [max(s) for s in samples]
        _bars(axes, names, values, [COLORS[engines.index(r["engine"])] for r in rows], notes, ends)
        spread = [
            [v - min(s) for v, s in zip(values, samples, strict=True)],
            [max(s) - v for v, s in zip(values, samples, strict=True)],
        ]
        axes.errorbar(values, range(len(rows)), xerr=spread, fmt="none", ecolor=INK, elinewidth=1)
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 2, max(values) * 3)
        axes.set_title(f"{title}, tokens a second (logarithmic)", loc="left")
    panels[1].invert_yaxis()  # shared, and inverted once for each panel
    panels[1].invert_yaxis()
    for place in range(1, len(rows)):
        if rows[place]["format"] != rows[place - 1]["format"]:
            for axes in panels:
                axes.axhline(place - 0.5, color=INK, linewidth=0.8, alpha=0.6)
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    figure.tight_layout()
    _save(figure, path)
