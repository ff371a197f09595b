"""Accuracy against the reference, as a whole and by slice, as the report says it. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgewise.selector.budgets import metric_of
from edgewise.selector.report_data import ReportData
from edgewise.selector.sheets import Column, Sheet, count_cell, sheet, text_cell
from edgewise.selector.views import Cell, cell, interval, name_of
from edgewise.selector.words import bundle_name, percent, point
from edgewise.showing import show
from edgewise.types import Entry, Measurement, Metric, Target
from edgewise.units import METRICS, WORST

QUALITY = (
    "accuracy", "f1", "precision", "recall", "mcc", "exact_match", "bleu", "bleu_zh", "word_error", "char_error",
    "perplexity", "pearson", "spearman", "mse", "mae", f"{WORST}accuracy", f"{WORST}f1", f"{WORST}perplexity",
)  # fmt: skip
ROWS, SLICES = 200, 400
"""Rows of the two tables in the page."""
_AGAINST = ("accuracy_drop", "changed_answers", "perplexity_ratio")
_SLICED = (("accuracy", "drop", "accuracy_drop"), ("perplexity", "ratio", "perplexity_ratio"))
"""What a slice has: its metric, and the name and the metric of what it is compared by."""
_SETTINGS = Column("Settings", about="Those that may change an answer: all but the threads.")


@dataclass(frozen=True)
class Answered:
    """What answers alike: a bundle with all of its run settings but the threads."""

    entry: Entry
    reference: str
    where: str
    accuracy: Measurement | None
    comparison: Measurement | None

    @property
    def bundle(self) -> str:
        return bundle_name(self.entry)


def answered(data: ReportData) -> list[Answered]:
    """One for each bundle and settings, in the order of the verdicts; threads do not change an answer."""
    by_place: dict[Any, dict[str, Measurement]] = {}
    for m in data.measurements:
        if m.scenario in ("accuracy", "comparison") and m.stage == "profile" and m.status == "ok" and m.target:
            by_place.setdefault((m.content_digest, _settings(m.target)), {})[m.scenario] = m
    found: dict[Any, Answered] = {}
    for selection in data.selections:
        for entry in (v.entry for v in selection.verdicts):
            if entry.status != "ok" or entry.target is None or not any(n in entry.metrics for n in QUALITY):
                continue
            key = (entry.content_digest, entry.candidate, entry.recipe, _settings(entry.target))
            there = by_place.get((entry.content_digest, _settings(entry.target)), {})
            one = Answered(entry, entry.reference, _where(entry, data), there.get("accuracy"), there.get("comparison"))
            found.setdefault(key, one)
    return list(found.values())


def _settings(target: Target) -> Target:
    return replace(target, run=replace(target.run, threads=1))


def _where(entry: Entry, data: ReportData) -> str:
    assert entry.target is not None
    run = entry.target.run
    words = f"{run.provider}, length {run.max_length or 'full'}, batch {run.batch_size}"
    return words if len(data.selections) == 1 else f"{entry.target.device}: {words}"


def accuracy_sheet(data: ReportData) -> Sheet:
    """Quality, the drop against the reference, and the sentence that the numbers allow."""
    found = answered(data)
    names = [n for n in QUALITY if any(n in a.entry.metrics for a in found)]
    against = [n for n in _AGAINST if any(n in a.entry.metrics for a in found)]
    rows = [
        [
            Cell(a.bundle, a.bundle),
            text_cell(a.where),
            count_cell(max((a.entry.metrics[n].n for n in names if n in a.entry.metrics), default=0) or None),
            *[cell(a.entry.metrics.get(n)) for n in names],
            *[cell(_against(a, n)) for n in against],
            text_cell(_said(a)),
        ]
        for a in found
    ]
    columns = [
        Column("Bundle"),
        _SETTINGS,
        Column("Rows", True),
        *[Column(name_of(n), True, METRICS[n].about) for n in (*names, *against)],
        Column("What can be said"),
    ]
    return sheet(columns, rows, ROWS)


def _against(one: Answered, name: str) -> Metric | None:
    return metric_of(one.entry, name, one.reference)


def _said(one: Answered) -> str:
    """The sentence of the comparison; without one, the bound of the drop."""
    if one.entry.recipe == one.reference:
        return "the reference itself"
    if one.comparison is not None and (words := str(one.comparison.conditions.get("words") or "")):
        return words
    return drop_words(metric_of(one.entry, "accuracy_drop", one.reference))


def drop_words(drop: Metric | None) -> str:
    """'at most 0.42 points at 95%', or why nothing can be said."""
    if drop is None or point(drop) is None:
        return drop.why if drop and drop.why else "not measured"
    if drop.high is None or drop.level is None:
        return "no bound"
    return f"at most {show(drop.high, drop.unit)} at {percent(drop.level)}"


def slice_sheet(data: ReportData) -> Sheet:
    """The metric and what is lost on each slice of the rows; nothing where none was asked for."""
    found = answered(data)
    there = {key for one in found for m in (one.accuracy, one.comparison) for part in _parts(m) for key in part}
    kinds = [kind for kind in _SLICED if there & set(kind[:2])]
    rows = []
    for one in found:
        compared = {p["slice"]: p for p in _parts(one.comparison)}
        for part in _parts(one.accuracy):
            rows.append(_slice_row(one, part, compared.get(part["slice"], {}), kinds))
    columns = [
        Column("Bundle"),
        _SETTINGS,
        Column("Slice"),
        Column("Rows", True),
        *[Column(name_of(m), True, METRICS[m].about) for name, _, relative in kinds for m in (name, relative)],
        Column("Changed answers", True, "Rows of the slice that are answered otherwise than by the reference."),
    ]
    return sheet(columns, rows, SLICES)


def _slice_row(
    one: Answered, part: Mapping[str, Any], against: Mapping[str, Any], kinds: Sequence[tuple[str, str, str]]
) -> list[Cell]:
    itself = one.entry.recipe == one.reference
    cells = [Cell(one.bundle, one.bundle), text_cell(one.where), text_cell(str(part["slice"]))]
    cells.append(count_cell(len(part["rows"]) if "rows" in part else against.get("n")))
    for name, difference, relative in kinds:
        cells.append(_bounded(part, name, METRICS[name].unit))
        cells.append(Cell("reference") if itself else _bounded(against, difference, METRICS[relative].unit))
    return [*cells, count_cell(against.get("changed", 0 if itself else None))]


def _parts(measurement: Measurement | None) -> list[Mapping[str, Any]]:
    return list(measurement.conditions.get("slices") or ()) if measurement else []


def _bounded(part: Mapping[str, Any], name: str, unit: str) -> Cell:
    """A value of a slice with its bounds."""
    if part.get(name) is None:
        return cell(None)
    return cell(Metric(name, unit, part[name], part.get("low"), part.get("high")))


def slice_words(data: ReportData) -> list[str]:
    """For the chosen of each device: where it is worst."""
    by_key = {(a.entry.content_digest, _settings(a.entry.target)): a for a in answered(data) if a.entry.target}
    found = []
    for selection in data.selections:
        entry = selection.chosen.entry if selection.chosen else None
        one = by_key.get((entry.content_digest, _settings(entry.target))) if entry and entry.target else None
        worst = one.entry.metrics.get(f"{WORST}accuracy") if one else None
        parts = [p for p in _parts(one.accuracy if one else None) if p.get("accuracy") is not None]
        same = next((p for p in parts if worst and p["accuracy"] == worst.value), None)
        if entry is None or worst is None or same is None:
            continue
        found.append(
            f"The chosen {bundle_name(entry)} is worst on {same['slice']}: {show(worst.value, '1')} "
            f"({interval(worst)}) of {worst.n:,} rows, where it has {show(point(entry.metrics.get('accuracy')), '1')} "
            "on all. Slices of fewer than 20 rows do not count as the worst."
        )
    return list(dict.fromkeys(found))
