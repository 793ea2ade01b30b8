"""The Markdown page of ``bench_gpu``'s results."""

from __future__ import annotations

from typing import Any


def table(head: str, rows: list[list[str]]) -> list[str]:
    """A Markdown table after an empty line. A heading that begins with > aligns its column to the right."""
    names = [name.strip() for name in head.split("|")]
    rule = ["---:" if name.startswith(">") else "---" for name in names]
    return ["", *("| " + " | ".join(row) + " |" for row in ([n.lstrip(">") for n in names], rule, *rows))]


def page(r: dict[str, Any]) -> str:
    """The results in Markdown. Parts that are missing are left out."""
    lines = ["# A GPU", "", f"It was not opened; {r['seconds']:.0f} s in all."]
    if m := r.get("machine"):
        about = f"Driver {m['driver']}, {m['versions']}, llamagpu {m['llamagpu']}; {r['seconds']:.0f} s in all."
        lines = [f"# {m['adapter']}", "", about]
    failed = [f"\nFailed: {name}: {why}" for name, why in r["failed"].items()]
    left_out = [
        f"\nNo time was left in {section} for: {'; '.join(names)}"
        for section, names in r.get("left_out", {}).items()
        if names
    ]
    parts = (_kernels, _models, _checks, _changes, _llama_bench)
    return "\n".join([*lines, *(line for part in parts for line in part(r)), *failed, *left_out]) + "\n"


def _kernels(r: dict[str, Any]) -> list[str]:
    """Yardsticks and products."""
    facts = []
    if "copy_bytes_per_s" in r:
        facts += [
            f"Copy {r['copy_bytes_per_s'] / 1e9:,.0f} GB/s (bytes read and written)",
            f"multiply-adds {r['multiply_adds_per_s'] / 1e12:.2f} T/s",
        ]
    if gap := r.get("gap"):
        facts += [
            f"a small dispatch takes {gap['waiting'] * 1e6:.2f} µs if it waits for the previous one, "
            f"{gap['independent'] * 1e6:.2f} µs if not"
        ]
    lines = ["", "; ".join(facts) + "."] if facts else []
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
    lines += table("matvec | format | >µs | >GB/s | >of copy", rows) if rows else []
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
    return lines + (table("matmul of 512 vectors | format | >µs | >T multiply-adds/s | >of peak", rows) if rows else [])


def _models(r: dict[str, Any]) -> list[str]:
    if not r["models"]:
        return []
    beside, lines = {"runs": []} | r.get("torch", {}), []
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
    lines += table("model | dtype | >sequences | >depth | >tokens/s | >GPU idle | >torch", rows) if rows else []
    rows = []
    for row in (row for row in r["models"] if "prompt" in row):
        p = row["prompt"]
        first = f"{p['first_token_s'] * 1e3:.1f} ms"
        speed = [str(p["tokens"]), f"{p['tokens_per_s']:,.0f}", first, f"{row['tune_s']:.1f} s"]
        rows.append([row["shape"], row["dtype"], *speed])
    lines += table("model | dtype | >prompt | >tokens/s | >first token | >tuned in", rows) if rows else []
    profiled = [row for row in r["models"] if "profile" in row]
    return lines + (_profiles([row for row in profiled if row["shape"] == profiled[0]["shape"]]) if profiled else [])


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


def _checks(r: dict[str, Any]) -> list[str]:
    """The first checks of ``gpu_checks``."""
    rows = [[a["kind"], f"{a['warm_s'] * 1e6:.1f}", f"{a['cold_s'] * 1e6:.1f}"] for a in r.get("attention", [])]
    lines = table("attention of one sequence after 128 | >µs, its cache in L2 | >µs, not in L2", rows) if rows else []
    lines += _reductions(r.get("reductions", []))
    rows = []
    for row in r.get("prefetching", []):
        name, base = f"{row['rows']} × {row['columns']}", row["steps"][0]["seconds"]
        for step in row["steps"]:
            found = [f"{step['bytes'] / 1e6:.1f}", f"{step['seconds'] * 1e6:.1f}", f"{step['seconds'] / base:.3f}"]
            rows.append([name, row["format"], *found])
        rows.append([name, row["format"], "none: the same weights again", f"{row['same_weights_s'] * 1e6:.1f}", ""])
        rows.append([name, row["format"], "all, and nothing else", f"{row['prefetch_alone_s'] * 1e6:.1f}", ""])
    head = "attention, then gate_up | format | >MB read ahead beside attention | >µs | >of none"
    lines += table(head, rows) if rows else []
    rows = [
        [a["partials"], f"{a['blocks']} × {a['each']}", f"{a['sums']:,}", f"{a['wrong']:,}"]
        for a in r.get("arrivals", [])
    ]
    head = "partial results across workgroups | blocks × workgroups | >sums | >not the host's"
    return lines + (table(head, rows) if rows else [])


def _reductions(found: list[dict[str, Any]]) -> list[str]:
    """Ways to add up a team's lanes, for each matrix and for all of a token's products with it."""
    ways = ("workgroup", "subgroup", "transposed")
    rows = []
    for row in found:
        each = [f"{row['seconds'][w] * 1e6:.1f}" if w in row["seconds"] else "" for w in ways]
        times = row["seconds"]
        best = min(times, key=lambda w: times[w]) if times else ""
        norm = "yes" if row["normed"] else "no"
        rows.append([f"{row['rows']} × {row['columns']}", row["format"], norm, str(row["count"]), *each, best])
    for format in dict.fromkeys(row["format"] for row in found):
        same = [row for row in found if row["format"] == format]
        totals = {w: sum(row["seconds"].get(w, float("inf")) * row["count"] for row in same) for w in ways}
        each = [f"{t * 1e6:,.1f}" if t < float("inf") else "" for t in totals.values()]
        rows.append(["all of a token's", format, "", "", *each, min(totals, key=lambda w: totals[w])])
    head = "reduction | format | norm | >count | >µs by workgroup | >by subgroup | >transposed | fastest"
    return table(head, rows) if rows else []


def _changes(r: dict[str, Any]) -> list[str]:
    """Tunings, variants beside them, and bursts."""
    lines = []
    for row in r.get("tunings", []):
        left_out = f"; no time was left for: {'; '.join(row['tuning_left_out'])}" if row["tuning_left_out"] else ""
        about = f"{row['shape']} {row['dtype']}, tuned in {row['tune_s']:.1f} s{left_out}"
        lines += ["", f"{about}: `{row['tuning']}`"]
    rows = [
        [row["shape"], row["dtype"], str(row["batch"]), c["change"], f"{c['step_s'] * 1e6:,.0f}", f"{c['of_base']:.3f}"]
        for row in r.get("changes", [])
        for c in row["steps"]
    ]
    lines += table("model | dtype | >sequences | change | >µs a step | >of the tuning's", rows) if rows else []
    rows = []
    for row in r.get("bursts", []):
        speeds = [f"{row['bursts'][n]:,.0f}" if n in row["bursts"] else "" for n in ("1", "8")]
        rows.append([row["shape"], row["dtype"], *speeds])
    return lines + (table("model | dtype | >tokens/s, 1 step a submission | >8 steps", rows) if rows else [])


def _llama_bench(r: dict[str, Any]) -> list[str]:
    """llama.cpp's own results."""
    rows = [
        [b["file"], b["type"], b["test"], f"{b['tokens_per_s']:,.1f}", b["backend"], b["commit"]]
        for b in r.get("llama_bench", [])
    ]
    return table("llama.cpp | type | test | >tokens/s | backend | commit", rows) if rows else []
