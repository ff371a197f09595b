"""The report: one HTML file that opens from a USB stick, with no network.

plotly's own file is read from the installed package and inlined once, packed. All text passes Jinja2's
autoescape; data for the scripts stand in a JSON block in which no '<' is left.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgewise.errors import need_extra
from edgewise.files import write_text
from edgewise.selector import views
from edgewise.selector.answers import accuracy_sheet, slice_sheet, slice_words
from edgewise.selector.conditions import condition_lines, machine_facts
from edgewise.selector.glossary import glossary, scope
from edgewise.selector.measured import measurement_rows
from edgewise.selector.report_data import ReportData
from edgewise.selector.several import one_for_all
from edgewise.selector.sheets import joint_sheet
from edgewise.selector.speed import (
    latency_sheet,
    least_time,
    not_measured,
    peak_lines,
    roofline_sheet,
    roofline_words,
    rooflines,
    startup_sheet,
)
from edgewise.selector.words import bundle_name, finite, label, limit_text
from edgewise.showing import show
from edgewise.types import Selection
from edgewise.units import METRICS

SAMPLES_EACH = 150
SAMPLES_ALL = 20_000
"""Latency samples in the page: what is above is thinned evenly over the sorted samples, which keeps the quantiles."""
PACKED_FROM = 200
"""Measurements from which on their table stands packed in the page: it is most of it, and is opened by few."""
EXAMPLES = 100
TEXT_LIMIT = 400


def write_report(path: Path, report: ReportData, *, examples: bool = True) -> None:
    """Write the report as one HTML file, whole or not at all.

    examples: False leaves out every text of the data.
    Raises MissingExtraError without Jinja2 or plotly, NoSpaceError when the disk is full.
    """
    write_text(path, render_report(report, examples=examples))


def render_report(report: ReportData, *, examples: bool = True) -> str:
    """The report as text of an HTML page."""
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise need_extra("profile", error) from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_own("report.html.j2"))
    return template.render(
        **_context(report, examples),
        css=Markup(_own("report.css")),  # our own file
        js=Markup(_own("report.js")),  # our own file
        plotly=packed(get_plotlyjs()),
        pack=packed,
        packs=len(report.measurements) >= PACKED_FROM,
        page_json=Markup(embed(_page_data(report))),  # escaped by embed
    )


def packed(text: str) -> str:
    """gzip in base64: plotly's script takes 2 MB of the page so, and not 5. Browsers have unpacked gzip since 2023."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode("ascii")


def embed(value: Any) -> str:
    """JSON that can stand inside a <script> element: no '<', no '>', no '&', no line separator of JavaScript."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _own(name: str) -> str:
    return files("edgewise.selector").joinpath(name).read_text(encoding="utf-8")


def _context(report: ReportData, examples: bool) -> dict[str, Any]:
    rows = views.entry_rows(report)
    joint = one_for_all(report.selections)
    measured, notes = measurement_rows(report.measurements[: views.ROW_LIMIT])
    return {
        "report": report,
        "generated": report.generated.strftime("%Y-%m-%d %H:%M UTC"),
        "answers": [views.answer(s) for s in report.selections],
        "columns": [(n, views.name_of(n), METRICS[n].about) for n in views.columns(report)],
        "rows": rows[: views.ROW_LIMIT],
        "rows_left": max(0, len(rows) - views.ROW_LIMIT),
        "accuracy": accuracy_sheet(report),
        "slices": slice_sheet(report),
        "slice_words": slice_words(report),
        "latency": latency_sheet(report),
        "not_measured": not_measured(report),
        "startup": startup_sheet(report),
        "roofline": roofline_sheet(report),
        "roofline_words": roofline_words(report),
        "peaks": peak_lines(report),
        "conditions": condition_lines(report),
        "joint": joint,
        "joint_sheet": joint_sheet(joint),
        "scope": scope(report),
        "glossary": glossary(report),
        "changed": [_cut(c.__dict__) for c in report.changed[:EXAMPLES]] if examples else [],
        "changed_total": max(report.changed_count, len(report.changed)),
        "examples": examples,
        "measured": measured,
        "measured_left": max(0, len(report.measurements) - views.ROW_LIMIT),
        "notes": notes,
        "machines": [(name, machine_facts(f)) for name, f in report.machines.items()],
        "training": report.training,
        "train_metrics": list(dict.fromkeys(m for t in report.training for m in t.metrics)),
        "show": show,
        "metric_unit": lambda name: METRICS[name].unit if name in METRICS else "",
        "name_of": views.name_of,
        "several": len(report.selections) > 1,
        "summaries": _summaries(report),
        "has_samples": any(report.samples.values()),
    }


def _cut(fields: dict[str, str]) -> dict[str, str]:
    return {k: v if len(v) <= TEXT_LIMIT else v[:TEXT_LIMIT] + " …" for k, v in fields.items()}


def _summaries(report: ReportData) -> dict[str, str]:
    """What the plots show, for those who do not see them. The first is rewritten when the axes switch."""
    ok = [v for s in report.selections for v in s.verdicts if v.entry.status == "ok"]
    seen = "looked at or measured" if any(v.entry.partial for v in ok) else "measured"
    front = sum(v.pareto for v in ok)
    feasible = sum(v.feasible for v in ok)
    counts = [len(x) for x in report.samples.values()]
    start = [(m.value, label(e)) for e in report.entries if (m := e.metrics.get("startup")) and finite(m.value)]
    quickest = min(start, key=lambda pair: pair[0] or 0.0, default=None)
    return {
        "tradeoff": f"{len(ok)} entries were {seen}"
        f"; {feasible} keep every budget and {front} stand on the Pareto "
        "front of the objectives. The same numbers stand in the table of all entries below.",
        "latency": f"Times of single calls of {len(counts)} entries, {sum(counts):,} in all"
        + (", thinned evenly" if sum(counts) > SAMPLES_ALL or max(counts, default=0) > SAMPLES_EACH else "")
        + ". Percentiles with their intervals stand in the table of all measurements.",
        "startup": "Time from starting the process to the first answer, by phase."
        + (f" The quickest is {quickest[1]} with {show(quickest[0], 's')}." if quickest else ""),
    }


def _page_data(report: ReportData) -> dict[str, Any]:
    """What the scripts draw."""
    roofs = {key: least_time(part) for key, part in rooflines(report).items()}
    points = [p for s in report.selections for p in _points(s, roofs)]
    used = dict.fromkeys(m for p in points for m in p["m"])
    return {
        "metrics": {n: {"name": views.name_of(n), "unit": METRICS[n].unit, "better": METRICS[n].better} for n in used},
        "devices": [
            {
                "name": s.device,
                "objective": list(s.objective),
                "budgets": [
                    {"metric": b.metric, "op": b.op, "limit": b.limit, "text": limit_text(b)} for b in s.budgets
                ],
            }
            for s in report.selections
        ],
        "points": points,
        "samples": _thinned(report.samples),
        "phases": [[p, p.removeprefix("startup_")] for p in views.PHASES],
    }


def _points(selection: Selection, roofs: Mapping[str, float]) -> list[dict[str, Any]]:
    references = {b.metric: b.relative_to for b in selection.budgets}
    return [
        {
            "key": v.entry.key,
            "name": bundle_name(v.entry),
            "candidate": v.entry.candidate,
            "recipe": v.entry.recipe,
            "run": v.entry.target.run.text() if v.entry.target else "",
            "device": selection.device,
            "rank": v.rank,
            "feasible": v.feasible,
            "chosen": bool(selection.chosen) and v.rank == 1,
            "broken": [views.name_of(c.budget.metric) for c in v.checks if not c.met],
            "m": views.entry_metric_values(v.entry, references),
            **({"least": roofs[v.entry.key]} if v.entry.key in roofs else {}),
        }
        for v in selection.verdicts
        if v.entry.status == "ok"
    ]


def _thinned(samples: Any) -> dict[str, list[float]]:
    each = min(SAMPLES_EACH, max(20, SAMPLES_ALL // max(1, len(samples))))
    return {key: [float(f"{x:.4g}") for x in _quantiles(values, each)] for key, values in samples.items() if values}


def _quantiles(values: Sequence[float], count: int) -> list[float]:
    """`count` of the sorted values, evenly, with both ends."""
    kept = sorted(v for v in values if finite(v))
    if len(kept) <= count:
        return kept
    return [kept[round(i * (len(kept) - 1) / (count - 1))] for i in range(count)]
