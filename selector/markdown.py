"""The report as Markdown, and what Markdown needs of escaping. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgewise.files import write_text
from edgewise.selector import views
from edgewise.selector.answers import accuracy_sheet, slice_sheet, slice_words
from edgewise.selector.budgets import metric_of
from edgewise.selector.conditions import condition_lines, machine_facts
from edgewise.selector.glossary import glossary, scope
from edgewise.selector.report_data import ReportData, confirm_words, confirmation
from edgewise.selector.several import one_for_all
from edgewise.selector.sheets import Sheet, joint_sheet
from edgewise.selector.speed import (
    latency_sheet,
    not_measured,
    peak_lines,
    roofline_sheet,
    roofline_words,
    startup_sheet,
)
from edgewise.selector.views import Cell
from edgewise.selector.words import bundle_name, gap, limit_text, percent
from edgewise.showing import show
from edgewise.types import BudgetCheck, Entry, Selection, Verdict
from edgewise.units import METRICS

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~$])")


def write_markdown(path: Path, data: ReportData) -> None:
    """Write the report as one Markdown file, whole or not at all. It holds no text of the data's rows."""
    write_text(path, render_markdown(data))


def render_markdown(data: ReportData) -> str:
    """The report as Markdown."""
    lines = [
        f"# {escape(data.title)}",
        "",
        f"{data.generated.strftime('%Y-%m-%d %H:%M UTC')}. {escape(scope(data))}",
        "",
    ]
    for selection in data.selections:
        lines += _selection(selection, data)
    if (joint := one_for_all(data.selections)) is not None:
        lines += ["## One bundle for all devices", "", escape(joint.sentence), "", *_sheet(joint_sheet(joint))]
    lines += _section("Latency of single calls", latency_sheet(data), [not_measured(data)])
    lines += _section("Accuracy against the reference", accuracy_sheet(data))
    lines += _section("Accuracy by slice", slice_sheet(data), slice_words(data))
    lines += _section("Roofline", roofline_sheet(data), [*roofline_words(data), *_peaks(data)])
    lines += _section("Start-up", startup_sheet(data))
    lines += _training(data)
    if conditions := condition_lines(data):
        lines += ["## How it was measured", "", *[f"- {escape(line)}" for line in conditions], ""]
    for name, fingerprint in data.machines.items():
        lines += [f"## Machine: {escape(name)}", ""]
        lines += table(["", ""], [[escape(k), escape(v)] for k, v in machine_facts(fingerprint)])
    lines += ["## What the words mean", "", *[f"- **{escape(w)}**: {escape(t)}" for w, t in glossary(data)], ""]
    lines += ["## How to reproduce this", "", *fence(data.command)]
    if data.versions:
        lines += [", ".join(f"{escape(k)} {escape(v)}" for k, v in data.versions.items()), ""]
    if data.plan:
        lines += ["The plan:", "", *fence(data.plan)]
    return "\n".join(lines).rstrip() + "\n"


def _section(title: str, sheet: Sheet, words: Sequence[str] = ()) -> list[str]:
    if not sheet:
        return []
    told = [line for text in words if text for line in (escape(text), "")]
    return [f"## {title}", "", *told, *_sheet(sheet)]


def _sheet(sheet: Sheet) -> list[str]:
    """A table of the report; what is estimated or unavailable says so."""
    lines = table([escape(c.title) for c in sheet.columns], [[_cell(c) for c in row] for row in sheet.rows])
    left = [f"{sheet.left:,} more rows are left out; the report as JSON has every measurement.", ""]
    return [*lines, *(left if sheet.left else [])]


def _cell(cell: Cell) -> str:
    if cell.kind == "missing":
        return "-"
    kind = f" {cell.kind}" if cell.kind == "estimated" else ""
    more = cell.small or (cell.why if cell.kind == "unavailable" else "")
    return escape(cell.text + (f" ({more})" if more else "") + kind)


def _peaks(data: ReportData) -> list[str]:
    return [f"Measured peaks of {line}." for line in peak_lines(data)]


def escape(text: str) -> str:
    """Text that Markdown and the HTML inside it print as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split())).replace("&", "&amp;")


def fence(text: str) -> list[str]:
    """A code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    mark = "`" * max(3, longest + 1)
    return [mark, *text.rstrip().splitlines(), mark, ""]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table of cells that are escaped already, with an empty line after it."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines] + [""]


def budget_table(checks: Sequence[BudgetCheck], confidence: float) -> list[str]:
    """Each budget with value, bound and room."""
    rows = []
    for check in checks:
        unit = check.budget.unit
        op = "≤" if check.budget.op == "<=" else "≥"
        bound = views.bound_text(check)
        room = "not known" if check.margin is None else ("" if check.met else "-") + gap(check.margin, unit)
        limit = f"{op} {limit_text(check.budget)}"
        status = "met" if check.met else "**not met**"
        rows.append(
            [escape(views.name_of(check.budget.metric)), escape(limit), show(check.value, unit), bound, room, status]
        )
    return table(["Budget", "Limit", "Value", f"Bound at {percent(confidence)}", "Room", "Status"], rows)


def _selection(selection: Selection, data: ReportData) -> list[str]:
    answer = views.answer(selection)
    title = "The answer" if len(data.selections) == 1 else f"The answer on {selection.device}"
    lines = [f"## {escape(title)}", "", f"**{escape(answer['sentence'])}**", "", escape(answer["asked"]), ""]
    if words := confirm_words(selection):
        lines += [escape(words), ""]
    if selection.chosen:
        tried = confirmation(selection)
        checks = tried.checks if tried and tried.checks else selection.chosen.checks
        lines += budget_table(checks, selection.confidence) if checks else []
    if answer["what_if"]:
        lines += [
            escape(f"What would change the choice{answer['what_if_among']}:"),
            "",
            *[f"- {escape(w)}" for w in answer["what_if"]],
            "",
        ]
    if selection.chosen:
        lines += [escape(selection.chosen.reason), ""]
    lines += [escape(selection.left_out), ""] if selection.left_out else []
    lines += [escape(answer["unbeaten"]), ""] if answer["unbeaten"] else []
    for rival in answer["rivals"]:
        lines.append(f"- {escape(rival['name'])} ({escape(rival['best'])}): {escape(rival['why'])}")
    lines += [""] if answer["rivals"] else []
    for number, tried in enumerate(selection.confirmed, start=1):
        lines.append(f"{number}. {escape(tried.key)}: {escape(tried.reason)}.")
    lines += [""] if selection.confirmed else []
    return [*lines, "### All entries", "", *_entries(selection, data)]


def _entries(selection: Selection, data: ReportData) -> list[str]:
    names = views.columns(data)
    shown = selection.verdicts[: views.ROW_LIMIT]
    header = ["Rank", "Bundle", "Run settings", *[escape(views.name_of(n)) for n in names], "Verdict"]
    lines = table(header, [_entry(v, names, selection) for v in shown])
    left = len(selection.verdicts) - len(shown)
    return [*lines, *([f"{left:,} more stand in selection.json.", ""] if left else [])]


def _entry(verdict: Verdict, names: Sequence[str], selection: Selection) -> list[str]:
    entry: Entry = verdict.entry
    references = {b.metric: b.relative_to for b in selection.budgets}
    run = entry.target.run.text() if entry.target else "-"
    cells = [views.cell(metric_of(entry, n, references.get(n))) for n in names]
    return [
        str(verdict.rank or "-"),
        escape(bundle_name(entry)),
        escape(run),
        *map(_cell, cells),
        escape(verdict.reason),
    ]


def _training(data: ReportData) -> list[str]:
    if not data.training:
        return []
    names = list(dict.fromkeys(m for t in data.training for m in t.metrics))
    rows = [
        [
            escape(t.candidate),
            escape(t.strategy),
            f"{t.rows:,}" if t.rows is not None else "-",
            f"{t.epochs:g}" if t.epochs is not None else "-",
            show(t.seconds, "s"),
            *[show(t.metrics.get(n), METRICS[n].unit if n in METRICS else "") for n in names],
            escape(t.note),
        ]
        for t in data.training
    ]
    header = ["Candidate", "Strategy", "Rows", "Epochs", "Time", *[escape(views.name_of(n)) for n in names], "Note"]
    return ["## Training", "", *table(header, rows)]
