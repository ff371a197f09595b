"""Times of calls, start-up by phase and the roofline, as the report says them. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewise.selector.report_data import ReportData
from edgewise.selector.sheets import MISSING, Column, Sheet, sheet, text_cell, where
from edgewise.selector.views import PHASES, Cell, cell, name_of
from edgewise.selector.words import bundle_name, listed, point
from edgewise.showing import show
from edgewise.types import Entry, Target
from edgewise.units import METRICS, PERCENTILES

_TIMES = (
    *PERCENTILES, "latency_mean", "throughput", "ttft_p50", "ttft_p90", "tpot_p50", "tpot_p90", "token_throughput",
)  # fmt: skip


def latency_sheet(data: ReportData) -> Sheet:
    """Percentiles of the time of one call."""
    return _metric_sheet(data, [n for n in _TIMES if _any(data, n)])


def startup_sheet(data: ReportData) -> Sheet:
    """From starting the process to its first answer, by phase."""
    there = [n for n in ("startup", *PHASES) if _any(data, n)]
    return _metric_sheet(data, there) if there else sheet([], [])


def not_measured(data: ReportData) -> str:
    """The percentiles that no entry has enough calls for."""
    missing = [n for n in PERCENTILES if not _any(data, n) and any(n in e.metrics for e in data.entries)]
    return f"{listed(missing)}: no entry has it; the table of all measurements says why." if missing else ""


def _any(data: ReportData, name: str) -> bool:
    return any(point(e.metrics.get(name)) is not None for e in data.entries)


def _metric_sheet(data: ReportData, names: list[str]) -> Sheet:
    rows = [
        [_bundle(e), text_cell(where(e, data)), *[cell(e.metrics.get(n)) for n in names]]
        for e in data.entries
        if e.status == "ok" and any(n in e.metrics for n in names)
    ]
    heads = [Column(name_of(n.removeprefix("startup_")), True, METRICS[n].about) for n in names]
    return sheet([Column("Bundle"), Column("Run settings"), *heads], rows)


def _bundle(entry: Entry) -> Cell:
    return Cell(bundle_name(entry), bundle_name(entry))


def rooflines(data: ReportData) -> dict[str, Mapping[str, Any]]:
    """Entry key -> the roofline's parts, as the profiler kept them; of the same thing measured twice the later one."""
    by_place: dict[tuple[str | None, Target], Mapping[str, Any]] = {}
    for m in data.measurements:
        if m.target is not None and m.stage == "profile" and (found := m.conditions.get("roofline")):
            by_place[m.content_digest, m.target] = found
    return {
        e.key: by_place[e.content_digest, e.target]
        for e in data.entries
        if e.target is not None and (e.content_digest, e.target) in by_place and _is_limit(e)
    }


def _is_limit(entry: Entry) -> bool:
    """Whether the limit stands: one above the mean time is none, as the machine was slower while it was measured."""
    metric = entry.metrics.get("roofline")
    return metric is None or metric.value is not None


def least_time(part: Mapping[str, Any]) -> float:
    """Seconds that a call takes at least, by the machine's peaks."""
    return max(float(part["compute_s"]), float(part["memory_s"]))


def roofline_sheet(data: ReportData) -> Sheet:
    """Operations and bytes of a call, the least time that they take at the machine's peaks, and the time it took."""
    parts = rooflines(data)
    rows = [
        [_bundle(e), text_cell(where(e, data)), *_roofline_cells(e, parts[e.key])]
        for e in data.entries
        if e.status == "ok" and e.key in parts
    ]
    columns = [
        Column("Bundle"),
        Column("Run settings"),
        Column("Operations a call", True, "A multiplication and an addition are two; the products alone."),
        Column(
            "Weights read",
            True,
            "Bytes that a call reads from memory; 0 where they fit into the last cache, or it is not known.",
        ),
        Column("Least time", True, "At the machine's measured peaks."),
        Column("Bound by"),
        Column("Mean time", True, METRICS["latency_mean"].about),
        Column("Of the peak", True, METRICS["roofline"].about),
    ]
    return sheet(columns, rows)


def _roofline_cells(entry: Entry, part: Mapping[str, Any]) -> list[Cell]:
    total = sum(float(n) for n in part["operations"].values())
    kinds = " + ".join(f"{float(n) / 1e6:.3g} M {kind}" for kind, n in part["operations"].items() if n)
    least = least_time(part)
    weights = float(part["weights"])
    return [
        Cell(f"{total / 1e6:.3g} M", f"{total:.6g}", kinds, "estimated"),
        Cell(show(weights, "B") if weights else "0", f"{weights:.6g}", "", "estimated"),
        Cell(show(least, "s"), f"{least:.6g}", "", "estimated"),
        text_cell("reading weights" if part["memory_s"] > part["compute_s"] else "products"),
        cell(entry.metrics.get("latency_mean")),
        cell(entry.metrics.get("roofline")) if "roofline" in entry.metrics else MISSING,
    ]


def peak_lines(data: ReportData) -> list[str]:
    """The measured peaks of each machine and number of threads."""
    found: dict[str, str] = {}
    for m in data.measurements:
        part = m.conditions.get("roofline")
        if m.target is None or not part:
            continue
        peaks, threads = part["peaks"], m.target.run.threads
        found[f"{m.target.device}, {threads} thread{'s' * (threads != 1)}"] = (
            f"{peaks['float32'] / 1e9:.3g} G operations a second in float32, {peaks['int8'] / 1e9:.3g} G in int8, "
            f"{peaks['bytes'] / 1e9:.3g} GB a second from memory"
        )
    return [f"{place}: {text}" for place, text in found.items()]


def roofline_words(data: ReportData) -> list[str]:
    """For the chosen of each device: how near it comes to what its machine can do."""
    parts = rooflines(data)
    found = []
    for selection in data.selections:
        entry = selection.chosen.entry if selection.chosen else None
        share = point(entry.metrics.get("roofline")) if entry else None
        if entry is None or share is None or entry.key not in parts:
            continue
        mean = show(point(entry.metrics.get("latency_mean")), "s")
        least = show(least_time(parts[entry.key]), "s")
        found.append(
            f"{selection.device}: the chosen {bundle_name(entry)} comes to {100 * share:.1f}% of what the machine "
            f"could do at best: a call takes {mean}, of which its products and weights need {least}."
        )
    above = sum((point(e.metrics.get("roofline")) or 0) > 1 for e in data.entries)
    if above:
        found.append(
            f"{above:,} of the entries took less than their least time: the peaks were measured too low, as on "
            "a machine that others use, or what should come from memory came from a cache."
        )
    return found
