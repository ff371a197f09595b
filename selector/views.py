"""What the report's template prints: every number already in words, every list already in order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgewise.selector.budgets import binding, metric_of, relative_room
from edgewise.selector.report_data import ReportData, confirm_words, confirmation
from edgewise.selector.select import with_confirmed
from edgewise.selector.words import bundle_name, gap, label, limit_text, listed, percent, point, what_if_among
from edgewise.showing import show
from edgewise.types import BudgetCheck, Entry, Metric, Selection, Verdict
from edgewise.units import METRICS, RELATIVE

ROW_LIMIT = 1200
"""Rows of a table in the page; the store and selection.json hold the rest."""
NAMES = {
    "accuracy": "Accuracy", "f1": "F1", "accuracy_drop": "Drop", "changed_answers": "Changed answers",
    "peak_rss": "Peak memory", "size": "Size", "startup": "Start-up", "throughput": "Throughput",
    "latency_mean": "Mean latency", "train_time": "Training time", "pss": "PSS", "uss": "USS", "empty_rss": "Empty RSS",
    "worst_slice_accuracy": "Worst slice", "roofline": "Roofline", "energy": "Energy", "gpu_memory": "GPU memory",
    "agreement": "Agreement",
}  # fmt: skip
PHASES = ("startup_interpreter", "startup_imports", "startup_load", "startup_session", "startup_first")


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    sort: str = ""
    """What sorting compares; '' sorts last."""
    small: str = ""
    """The interval, in small print."""
    kind: str = "measured"
    why: str = ""


def name_of(metric: str) -> str:
    """For headings: 'Peak memory', 'p95'."""
    return NAMES.get(metric, metric.replace("_", " "))


def cell(metric: Metric | None) -> Cell:
    """A metric with its interval; what is estimated or unavailable says so."""
    value = point(metric)
    if metric is None:
        return Cell("not measured", kind="missing")
    if value is None:
        shown = "unavailable" if metric.kind == "unavailable" or metric.value is None else f"invalid ({metric.value})"
        return Cell(shown, kind="unavailable", why=metric.why)
    return Cell(show(value, metric.unit), f"{value:.6g}", interval(metric), metric.kind, metric.why)


def interval(metric: Metric) -> str:
    """'7.90 to 8.41 ms', in the unit of the value; '' without bounds."""
    ends = [show(b, metric.unit) for b in (metric.low, metric.high) if b is not None and math.isfinite(b)]
    if len(ends) == 2:
        (low, unit), (high, other) = (_split(e) for e in ends)
        if unit != other:
            return " to ".join(ends)
        return f"{low}{' to ' if low.startswith('-') else '–'}{high}{unit}"
    return f"{'≥' if metric.low is not None else '≤'} {ends[0]}" if ends else ""


def _split(shown: str) -> tuple[str, str]:
    number = shown.rstrip("%").partition(" ")[0]
    return number, shown[len(number) :]


def source(selection: Selection, metric: str) -> str:
    """Where the chosen one's number comes from."""
    if (tried := confirmation(selection)) is not None and metric in tried.metrics:
        return "confirmed"
    return "at choice"


def chosen_metric(selection: Selection, name: str) -> Metric | None:
    """The chosen one's metric: that of the confirmation, where it was measured there."""
    if selection.chosen is None:
        return None
    tried = confirmation(selection)
    reference = next((b.relative_to for b in selection.budgets if b.metric == name), None)
    found = tried.metrics.get(name) if tried else None
    return found or metric_of(selection.chosen.entry, name, reference)


def columns(data: ReportData) -> list[str]:
    """Metrics worth a column: objectives, budgets, then the usual ones that anything has."""
    first = [m for s in data.selections for m in (*s.objective, *(b.metric for b in s.budgets))]
    usual = ("accuracy", "accuracy_drop", "p95", "peak_rss", "size", "startup")
    there = {m for e in data.entries for m in e.metrics}
    return list(dict.fromkeys([*first, *(m for m in usual if m in there)]))


def answer(selection: Selection) -> dict[str, Any]:
    """The top of the report for one device."""
    chosen = selection.chosen
    tried = confirmation(selection)
    checks = tried.checks if tried and tried.checks else chosen.checks if chosen else ()
    wanted = dict.fromkeys([*selection.objective, *(b.metric for b in selection.budgets), "size"])
    tiles = [(name, chosen_metric(selection, name)) for name in wanted] if chosen else []
    return {
        "device": selection.device,
        "sentence": with_confirmed(selection, selection.confirmed).sentence,
        "asked": asked(selection),
        "chosen": bundle_name(chosen.entry) if chosen else None,
        "run": chosen.entry.target.run.text() if chosen and chosen.entry.target else "",
        "digest": chosen.entry.content_digest if chosen else None,
        "reason": chosen.reason if chosen else "",
        "left_out": selection.left_out,
        "confidence": percent(selection.confidence),
        "confirmed": tried is not None,
        "confirm_words": confirm_words(selection),
        "tries": [
            {"key": t.key, "passed": t.passed, "reason": t.reason, "checks": [c.words for c in t.checks]}
            for t in selection.confirmed
        ],
        "tiles": [
            {"name": name_of(n), "cell": cell(m), "source": source(selection, n), "n": m.n if m else 0}
            for n, m in tiles
        ][:6],
        "budgets": [_budget_row(c, chosen) for c in checks],
        "what_if": [capital(w.words) for w in selection.what_if],
        "what_if_among": what_if_among(selection),
        "misses": [] if chosen else [_miss(v) for v in selection.verdicts if v.entry.status == "ok"][:8],
        "rivals": _rivals(selection),
        "unbeaten": _unbeaten(selection),
    }


def asked(selection: Selection) -> str:
    """What the choice was for: 'the highest accuracy, then the lowest p95, within p95 ≤ 10 ms and size ≤ 30 MB'."""
    best = [f"the {'lowest' if METRICS[n].better == 'lower' else 'highest'} {name_of(n)}" for n in selection.objective]
    if selection.weights:
        weighed = [f"{b} (weight {percent(round(w, 3))})" for b, w in zip(best, selection.weights, strict=True)]
        best = [f"{listed(weighed)} together"]
    limits = [f"{name_of(b.metric)} {'≤' if b.op == '<=' else '≥'} {limit_text(b)}" for b in selection.budgets]
    within = f", within {listed(limits)}" if limits else "; no budgets were given"
    return f"Asked for: {', then '.join(best)}{within}."


def _budget_row(check: BudgetCheck, chosen: Verdict | None) -> dict[str, Any]:
    unit = check.budget.unit
    tightest = binding(chosen) if chosen else None
    earlier = next((c for c in chosen.checks if c.budget == check.budget), None) if chosen else None
    room = relative_room(check)
    share = f" ({100 * room:.0f}% of the limit)" if check.budget.limit and math.isfinite(room) else ""
    return {
        "name": name_of(check.budget.metric),
        "about": METRICS[check.budget.metric].about,
        "limit": f"{'≤' if check.budget.op == '<=' else '≥'} {limit_text(check.budget)}",
        "value": show(check.value, unit),
        "bound": bound_text(check),
        "room": gap(check.margin, unit) + share if check.margin is not None else "not known",
        "met": check.met,
        "words": check.words,
        "tight": tightest is not None and tightest.budget == check.budget,
        "earlier": bound_text(earlier) if earlier else "-",
        **_bar(check),
    }


def bound_text(check: BudgetCheck) -> str:
    """The bound that must keep the limit, or that it was the value itself that was compared."""
    if check.bound is not None and check.bound == check.value:
        return "its value"
    return show(check.bound, check.budget.unit)


def _bar(check: BudgetCheck) -> dict[str, float]:
    """Where bound and limit stand on a bar of 0 to 100."""
    bound, limit = check.bound, check.budget.limit
    if bound is None or not math.isfinite(bound):
        return {"fill": 0.0, "tick": 80.0}
    top = 1.0 if check.budget.unit == "1" and check.budget.op == ">=" else max(limit * 1.25, bound * 1.05, 1e-12)
    return {"fill": min(100.0, max(0.0, 100 * bound / top)), "tick": min(100.0, max(0.0, 100 * limit / top))}


def _miss(verdict: Verdict) -> dict[str, Any]:
    return {"name": label(verdict.entry), "words": [c.words for c in verdict.checks if not c.met]}


def _rivals(selection: Selection) -> list[dict[str, str]]:
    """Those that a reader asks about first: best or fastest by one metric, but not chosen."""
    rivals: dict[str, dict[str, str]] = {}
    for name, own, others in _compared(selection):
        sign = 1 if METRICS[name].better == "lower" else -1
        found = [(sign * x, v) for x, v in others]
        # The best of those that keep the budgets, then the best of all.
        for best in (_best([f for f in found if f[1].feasible]), _best(found)):
            if best is None or best[0] >= sign * own:
                continue
            ours, theirs = show(own, METRICS[name].unit), show(sign * best[0], METRICS[name].unit)
            if ours == theirs:
                continue
            said = f"{name_of(name)} {theirs} instead of {ours}"
            start = {"name": label(best[1].entry), "why": capital(best[1].reason), "best": ""}
            row = rivals.setdefault(best[1].entry.key, start)
            if said not in row["best"]:
                row["best"] += f"; {said}" if row["best"] else said
    return list(rivals.values())[:6]


def _unbeaten(selection: Selection) -> str:
    """In what the chosen one is the best of all, so that nobody looks for a better one."""
    names = []
    for name, own, others in _compared(selection):
        sign = 1 if METRICS[name].better == "lower" else -1
        if others and all(sign * x >= sign * own for x, _ in others):
            names.append(name_of(name))
    return f"Nothing that was measured is better in {listed(names)}." if names else ""


def _compared(selection: Selection) -> Iterator[tuple[str, float, list[tuple[float, Verdict]]]]:
    """(metric, value of the chosen one, values of the others) of what a reader may ask for: objectives, budgets, and
    a latency even where neither names one."""
    if selection.chosen is None:
        return
    chosen = selection.chosen.entry
    others = [v for v in selection.verdicts if v.entry.key != chosen.key and v.entry.status == "ok"]
    asked = [*selection.objective, *(b.metric for b in selection.budgets if b.metric not in RELATIVE)]
    latencies = ("p95", "p90", "p50", "p99", "p99.9", "ttft_p50")
    if not any(n in asked and n in chosen.metrics and point(chosen.metrics[n]) is not None for n in latencies):
        asked += [n for n in latencies if point(chosen.metrics.get(n)) is not None][:1]
    for name in dict.fromkeys(asked):
        own = point(chosen.metrics.get(name))
        if own is not None:
            yield name, own, [(x, v) for v in others if (x := point(v.entry.metrics.get(name))) is not None]


def capital(text: str) -> str:
    """The first letter large, the others as they are; the name of a metric stays."""
    return text if text.partition(" ")[0] in METRICS else text[:1].upper() + text[1:]


def _best(found: list[tuple[float, Verdict]]) -> tuple[float, Verdict] | None:
    return min(found, key=lambda pair: pair[0], default=None)


def entry_rows(data: ReportData) -> list[dict[str, Any]]:
    """The table of all entries."""
    names = columns(data)
    rows = []
    for selection in data.selections:
        references = {b.metric: b.relative_to for b in selection.budgets}
        for verdict in selection.verdicts:
            entry = verdict.entry
            cells = [cell(metric_of(entry, n, references.get(n))) for n in names]
            rows.append({"device": selection.device, "entry": entry, "cells": cells, **_status(verdict, selection)})
    return rows


def _status(verdict: Verdict, selection: Selection) -> dict[str, Any]:
    broken = [name_of(c.budget.metric) for c in verdict.checks if not c.met]
    if verdict is selection.chosen or (verdict.rank == 1 and selection.chosen):
        status, text = "chosen", "Chosen"
    elif verdict.entry.status != "ok":
        status, text = "failed", "Failed"
    elif verdict.feasible:
        status, text = "met", "Keeps all budgets" if verdict.rank else "Not confirmed"
    else:
        status, text = "broken", f"Breaks {', '.join(broken)}"
    return {
        "status": status,
        "text": text,
        "rank": verdict.rank,
        "pareto": verdict.pareto,
        "reason": capital(verdict.reason),
    }


def entry_metric_values(entry: Entry, references: Mapping[str, str | None]) -> dict[str, list[Any]]:
    """Metrics for the plots: name -> [value, low, high, kind], without what is usual."""
    found: dict[str, list[Any]] = {}
    for name in dict.fromkeys([*entry.metrics, *RELATIVE]):
        metric = metric_of(entry, name, references.get(name))
        value = point(metric)
        if metric is not None and value is not None and name in METRICS:
            ends = [_short(b) if b is not None and math.isfinite(b) else None for b in (metric.low, metric.high)]
            kind = [] if metric.kind == "measured" else [metric.kind]
            found[name] = [_short(value), *(ends if kind or ends != [None, None] else []), *kind]
    return found


def _short(value: float) -> float:
    """Five significant digits are more than a screen shows, and keep the page small."""
    number = float(f"{value:.5g}")
    return int(number) if number.is_integer() else number
