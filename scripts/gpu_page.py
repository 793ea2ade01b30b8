"""The Markdown page of ``bench_gpu``'s results."""

from __future__ import annotations

from typing import Any


def table(head: str, rows: list[list[str]]) -> list[str]:
    """A Markdown table after an empty line. A heading that begins with > aligns its column to the right."""
    names = [name.strip() for name in head.split("|")]
    rule = ["---:" if name.startswith(">") else "---" for name in names]
    return ["", *("| " + " | ".join(row) + " |" for row in ([n.lstrip(">") for n in names], rule, *rows))]


def page(r: dict[str, Any]) -> str:
    """The results in Markdown."""
    m = r["machine"]
    lines = [
        f"# {m['adapter']}",
        "",
        f"Driver {m['driver']}, {m['versions']}, llamagpu {m['llamagpu']}; {r['seconds']:.0f} s in all.",
    ]
    failed = [f"\nFailed: {name}: {why}" for name, why in r["failed"].items()]
    return "\n".join([*lines, *_kernels(r), *_models(r), *_changes(r), *failed]) + "\n"


def _kernels(r: dict[str, Any]) -> list[str]:
    """Yardsticks and products."""
    if "matvec" not in r:
        return []
    gap = r["gap"]
    lines = [
        "",
        f"Copy {r['copy_bytes_per_s'] / 1e9:,.0f} GB/s (bytes read and written); multiply-adds "
        f"{r['multiply_adds_per_s'] / 1e12:.2f} T/s; a small dispatch takes {gap['waiting'] * 1e6:.2f} µs if it "
        f"waits for the previous one, {gap['independent'] * 1e6:.2f} µs if not.",
    ]
    rows = [
        [
            f"{v['rows']} × {v['columns']}",
            v["format"],
            f"{v['seconds'] * 1e6:.1f}",
            f"{v['bytes_per_s'] / 1e9:,.0f}",
            f"{v['of_copy']:.0%}",
        ]
        for v in r.get("matvec", [])
    ]
    lines += table("matvec | format | >µs | >GB/s | >of copy", rows)
    rows = [
        [
            f"{v['rows']} × {v['columns']}",
            v["format"],
            f"{v['seconds'] * 1e6:.0f}",
            f"{v['multiply_adds_per_s'] / 1e12:.2f}",
            f"{v['of_peak']:.0%}",
        ]
        for v in r.get("matmul", [])
    ]
    lines += table("matmul of 512 vectors | format | >µs | >T multiply-adds/s | >of peak", rows)
    return lines


def _models(r: dict[str, Any]) -> list[str]:
    if not r["models"]:
        return []
    beside, lines = r.get("torch", {"runs": []}), []
    peer = {(t["shape"], d["batch"], d["depth"]): d["tokens_per_s"] for t in beside["runs"] for d in t["decode"]}
    if peer:
        how = "with CUDA graphs" if beside["graphs"] else "without graphs"
        lines += [
            "",
            f"torch {beside['version']} on {beside['device']} {how}, {beside['runs'][0]['dtype']}, in this run.",
        ]
    rows = []
    for row in r["models"]:
        for d in row["decode"]:
            other = peer.get((row["shape"], d["batch"], d["depth"]))
            idle = f"{d['idle']:.1%}" if "idle" in d else "GPU steps only"
            speed = [f"{d['tokens_per_s']:,.0f}", idle, f"{other:,.0f}" if other else ""]
            rows.append([row["shape"], row["dtype"], str(d["batch"]), str(d["depth"]), *speed])
    lines += table("model | dtype | >sequences | >depth | >tokens/s | >GPU idle | >torch", rows)
    rows = []
    for row in r["models"]:
        p = row["prompt"]
        first = f"{p['first_token_s'] * 1e3:.1f} ms"
        speed = [str(p["tokens"]), f"{p['tokens_per_s']:,.0f}", first, f"{row['tune_s']:.1f} s"]
        rows.append([row["shape"], row["dtype"], *speed])
    lines += table("model | dtype | >prompt | >tokens/s | >first token | >tuned in", rows)
    if r["models"]:
        lines += _profiles([row for row in r["models"] if row["shape"] == r["models"][0]["shape"]])
    return lines


def _profiles(models: list[dict[str, Any]]) -> list[str]:
    """The time of one token by kernel."""
    lines = ["", f"One token of {models[0]['shape']} after 128, by timestamps, which add some µs to every dispatch:"]
    rows = []
    for model in models:
        for line in model["profile"]:
            each = line["seconds"] / line["calls"]
            read = f"{line['read_bytes'] / line['seconds'] / 1e9:,.0f}" if line["read_bytes"] else ""
            share = [f"{each * 1e6:.1f}", f"{line['share']:.1%}", read]
            rows.append([model["dtype"], line["kernel"], str(line["calls"]), *share])
    return lines + table("dtype | kernel | >dispatches | >µs each | >share | >GB/s", rows)


def _changes(r: dict[str, Any]) -> list[str]:
    """Variants beside the tuning in use, bursts, attention alone and llama.cpp."""
    rows = [
        [row["shape"], row["dtype"], str(row["batch"]), c["change"], f"{c['step_s'] * 1e6:,.0f}", f"{c['of_base']:.3f}"]
        for row in r.get("changes", [])
        for c in row["steps"]
    ]
    lines = table("model | dtype | >sequences | change | >µs a step | >of the tuning's", rows) if rows else []
    rows = [
        [row["shape"], row["dtype"], *(f"{row['bursts'][n]:,.0f}" for n in ("1", "8"))] for row in r.get("bursts", [])
    ]
    lines += table("model | dtype | >tokens/s, 1 step a submission | >8 steps", rows) if rows else []
    rows = [[a["kind"], f"{a['warm_s'] * 1e6:.1f}", f"{a['cold_s'] * 1e6:.1f}"] for a in r.get("attention", [])]
    lines += table("attention of one sequence after 128 | >µs, its cache in L2 | >µs, not in L2", rows) if rows else []
    rows = [[b["type"], b["test"], f"{b['tokens_per_s']:,.0f}"] for b in r.get("llama_bench", [])]
    return lines + (table("llama.cpp | test | >tokens/s", rows) if rows else [])
