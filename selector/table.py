"""A selection in the terminal: plain text that fits 80 columns. Standard library only."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence

from edgewise.selector.budgets import metric_of
from edgewise.selector.several import Joint
from edgewise.selector.words import bundle_name, gap, limit_text, point, what_if_among
from edgewise.showing import show
from edgewise.types import Entry, Selection, Verdict

WIDTH = 80


def ranking_table(selection: Selection, *, width: int = WIDTH, limit: int = 15) -> str:
    """The answer, the feasible by rank, then the nearest of the others with how many budgets each breaks."""
    names = _columns(selection)
    references = {b.metric: b.relative_to for b in selection.budgets}
    rows = []
    shown = [v for v in selection.verdicts if v.entry.status == "ok"][:limit]
    for verdict in shown:
        rank = str(verdict.rank) if verdict.rank else "-"
        cells = [_cell(verdict.entry, name, references.get(name)) for name in names]
        rows.append([rank, clean(bundle_name(verdict.entry)), _run(verdict.entry), *cells, _note(verdict)])
    header = ["#", "model", "run", *[_short(n) for n in names], "budgets"]
    lines = [*wrap(selection.sentence, width), ""]
    if rows:
        right = set(range(3, 3 + len(names))) | {0}
        lines += render(header, rows, width, right=right, shrink=(1, 2), drop=tuple(range(2 + len(names), 4, -1)))
    lines += _rest(selection, len(shown), width)
    if selection.chosen:
        lines += ["", *wrap(selection.chosen.reason, width)]
    lines += ["", *wrap(selection.left_out, width)] if selection.left_out else []
    lines += _weights(selection, width) + _what_if(selection, width)
    return "\n".join(lines) + "\n"


def near_misses(selection: Selection, *, width: int = WIDTH, limit: int = 8) -> str:
    """When nothing is feasible: the nearest entries, which budget each breaks, and by how much."""
    rows = []
    measured = [v for v in selection.verdicts if v.entry.status == "ok" and not v.entry.partial]
    near = measured or [v for v in selection.verdicts if v.entry.status == "ok"]
    shown = [v for v in near if not v.feasible][:limit]
    for verdict in shown:
        name = [clean(bundle_name(verdict.entry)), _run(verdict.entry)]
        for check in (c for c in verdict.checks if not c.met):
            unit = check.budget.unit
            over = gap(check.margin, unit) if check.margin is not None else "unknown"
            budget = f"{_short(check.budget.metric)} {check.budget.op} {limit_text(check.budget).split(' of ')[0]}"
            cells = [budget, show(check.value, unit), show(check.bound, unit), over]
            rows.append([*name, *[c.replace(" points", " pp") for c in cells]])
            name = ["", ""]
    lines = [*wrap(selection.sentence, width), ""]
    if rows:
        lines += render(
            ["model", "run", "budget", "value", "bound", "off by"], rows, width, right={3, 4, 5}, shrink=(0, 1)
        )
    lines += _rest(selection, len(shown), width)
    lines += ["", *wrap(selection.left_out, width)] if selection.left_out else []
    lines += _what_if(selection, width)
    return "\n".join(lines) + "\n"


def joint_table(joint: Joint, *, width: int = WIDTH, limit: int = 3) -> str:
    """The one bundle for all devices and the next best ones: what each is on each device."""
    lines = [*wrap(joint.sentence, width), ""]
    for bundle in joint.bundles[:limit]:
        lines.append(_fit(clean(bundle.name), width))
        for place in bundle.places:
            run = f" {_run(place.entry)}" if place.entry else " -"
            words = textwrap.wrap(clean(f"{place.device}:{run}: {place.words}"), width - 4)
            lines += [f"  {words[0]}", *(f"    {more}" for more in words[1:])]
    if len(joint.bundles) > limit:
        lines.append(f"... and {len(joint.bundles) - limit:,} more")
    return "\n".join(lines) + "\n"


def _weights(selection: Selection, width: int) -> list[str]:
    """'weights: accuracy 0.67, p95 0.33 ...'."""
    if not selection.weights:
        return []
    parts = [f"{n} {w:.2f}" for n, w in zip(selection.objective, selection.weights, strict=True)]
    return wrap(f"weights: {', '.join(parts)}; a point of a share counts as 1% of a time, size or rate", width)


def _what_if(selection: Selection, width: int) -> list[str]:
    """What would change the choice."""
    if not selection.what_if:
        return []
    lines = ["", *wrap(f"what would change it{what_if_among(selection)}:", width)]
    for step in selection.what_if:
        first, *more = textwrap.wrap(clean(step.words), width - 4)
        lines += [f"  {first}", *(f"    {line}" for line in more)]
    return lines


def _rest(selection: Selection, shown: int, width: int) -> list[str]:
    failed = [v for v in selection.verdicts if v.entry.status != "ok"]
    ok = len(selection.verdicts) - len(failed)
    lines = wrap(f"... and {ok - shown:,} more", width) if ok > shown else []
    for verdict in failed[:5]:
        lines += wrap(f"{bundle_name(verdict.entry)} {verdict.reason}", width)
    if len(failed) > 5:
        lines += wrap(f"... and {len(failed) - 5} more that failed", width)
    return lines


def _columns(selection: Selection) -> list[str]:
    """Objectives first, then what else has a budget."""
    return list(dict.fromkeys([*selection.objective, *(b.metric for b in selection.budgets)]))


def _cell(entry: Entry, name: str, reference: str | None) -> str:
    metric = metric_of(entry, name, reference)
    value = point(metric)
    if metric is None or value is None:
        return "-"
    text = show(value, metric.unit).replace(" points", " pp")
    return f"~{text}" if metric.kind == "estimated" else text


def _note(verdict: Verdict) -> str:
    broken = sum(not c.met for c in verdict.checks)
    if verdict.rank == 1:
        return "chosen"
    if verdict.entry.partial:
        return "not in full"
    if verdict.rank is None and verdict.feasible:
        return "failed confirm"
    return "met" if not broken else f"breaks {broken}"


def _short(metric: str) -> str:
    return {"accuracy_drop": "drop", "changed_answers": "changed", "latency_mean": "mean"}.get(metric, metric)


def _run(entry: Entry) -> str:
    """Run settings in few letters: 'cpu 2t len64'."""
    if entry.target is None:
        return "-"
    run = entry.target.run
    parts = [run.provider, f"{run.threads}t"]
    parts += [f"len{run.max_length}"] if run.max_length is not None else []
    parts += [f"b{run.batch_size}"] if run.batch_size != 1 else []
    return " ".join(parts)


def clean(text: str) -> str:
    """Without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "�" for c in text)


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` cells."""
    lines = textwrap.wrap(clean(text), width) or [""]
    if all(_cells(line) <= width for line in lines):
        return lines
    return textwrap.wrap(clean(text), max(1, width // 2))  # wide characters take two cells each


def _cells(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def _fit(text: str, width: int) -> str:
    """Cut in the middle, so that a name keeps its start and its end."""
    if _cells(text) <= width:
        return text
    head, tail = text[: (width - 1 + 1) // 2], text[len(text) - (width - 1) // 2 :]
    while _cells(head) + _cells(tail) + 1 > width and (head or tail):
        head, tail = (head[:-1], tail) if _cells(head) >= _cells(tail) else (head, tail[1:])
    return f"{head}…{tail}"


def render(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int = WIDTH,
    *,
    right: set[int] | None = None,
    shrink: Sequence[int] = (0,),
    drop: Sequence[int] = (),
) -> list[str]:
    """Lines of a table of at most `width` cells.

    right: columns set flush right. Where it is too wide, columns of `drop` go in that order until those of `shrink`
    keep 12 cells each, then the columns of `shrink` are cut.
    """
    keep = list(range(len(header)))
    widths = [max(_cells(r[i]) for r in (header, *rows)) for i in keep]
    need = {i: min(widths[i], 12) for i in shrink}

    def total(least: bool) -> int:
        return sum(need.get(i, widths[i]) if least else widths[i] for i in keep) + 2 * (len(keep) - 1)

    for i in drop:
        if total(least=True) > width:
            keep.remove(i)
    for i in sorted(keep, key=lambda i: (i not in shrink, -widths[i])):
        if (over := total(least=False) - width) > 0:
            widths[i] = max(4, widths[i] - over, need.get(i, 0) if i in shrink else 0)
    for i in sorted(keep, key=lambda i: -widths[i]):
        if (over := total(least=False) - width) > 0:
            widths[i] = max(1, widths[i] - over)

    def line(row: Sequence[str]) -> str:
        cells = []
        for i in keep:
            text = _fit(row[i], widths[i])
            pad = " " * (widths[i] - _cells(text))
            cells.append(pad + text if right and i in right else text + pad)
        return "  ".join(cells).rstrip()

    return [line(header), "  ".join("-" * widths[i] for i in keep), *[line(r) for r in rows]]
