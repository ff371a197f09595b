"""How and where it was measured: what is shared, what disturbed it, the machines. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgewise.selector.report_data import ReportData
from edgewise.selector.words import percent, plural
from edgewise.showing import show_fact
from edgewise.types import Measurement

_TROUBLE = (
    ("disturbed", "other processes took more than a tenth of the machine"),
    ("unsteady", "the time of a call moved within the round by more than a tenth"),
)


def condition_lines(data: ReportData) -> list[str]:
    """One sentence each; [] where nothing was timed."""
    timed = [
        m
        for m in data.measurements
        if m.status == "ok" and isinstance(m.conditions.get("rounds"), Mapping) and m.target
    ]
    if not timed:
        return _sentences(data.notes)
    rounds = [m.conditions["rounds"] for m in timed]
    counts = [int(r.get("count") or 0) for r in rounds]
    calls = [sum(r.get("calls") or []) for r in rounds]
    levels = sorted({x.level for m in data.measurements for x in m.metrics if x.level is not None})
    lines = [
        f"Each bundle on each of its settings ran in {_span(counts)} fresh processes, all of them in turn, with "
        f"{_span(calls)} timed calls in all.",
        *[f"Each end of an interval holds at {percent(level)}." for level in levels],
        *_inputs(timed),
        *_trouble(timed, rounds, sum(counts)),
    ]
    wide = sum(bool(r.get("wide")) for r in rounds)
    if wide:
        lines.append(f"The interval stayed wider than asked for in {wide:,} of {plural(len(timed), 'measurement')}.")
    notes = dict.fromkeys(str(n) for m in timed for n in m.conditions.get("notes") or [] if "disturbed" not in str(n))
    return [*lines, *_sentences((*data.notes, *notes))]


def _sentences(notes: Iterable[str]) -> list[str]:
    return [f"{note[:1].upper()}{note[1:]}." for note in notes]


def _inputs(timed: Sequence[Measurement]) -> list[str]:
    """How long the inputs were, for each length that they are cut to."""
    found: dict[int | None, list[Mapping[str, Any]]] = {}
    for m in timed:
        told = m.conditions.get("inputs")
        if not isinstance(told, Mapping) or m.target is None:
            continue
        tokens = told.get("tokens")
        if tokens and tokens.get("max"):
            found.setdefault(m.target.run.max_length, []).append({**tokens, "cut": told.get("truncated") or 0})
    lines = []
    for length, mixes in sorted(found.items(), key=lambda pair: pair[0] or math.inf):
        low, high = min(x["min"] for x in mixes), max(x["max"] for x in mixes)
        middle = sorted(x["p50"] for x in mixes)[len(mixes) // 2]
        cut = max(x["cut"] for x in mixes)
        lines.append(
            f"{f'At length {length}' if length else 'At the length that the model allows'}: inputs of {low} to {high} "
            f"tokens, half of them up to {middle}, {f'up to {100 * cut:.0f}%' if cut else 'none'} of them cut."
        )
    return lines


def _trouble(timed: Sequence[Measurement], rounds: Sequence[Mapping[str, Any]], total: int) -> list[str]:
    lines = []
    for name, about in _TROUBLE:
        hit = [len(r[name]) for r in rounds if r.get(name)]
        if hit:
            lines.append(
                f"{name.capitalize()}: {sum(hit):,} of {total:,} rounds, in {len(hit):,} of {len(timed):,} "
                f"measurements ({about})."
            )
    again = sum(len(r["repeated"]) for r in rounds if r.get("repeated"))
    if again:
        lines.append(
            f"Repeated: {plural(again, 'round')} that other processes disturbed; of each the calmer time counts."
        )
    return lines or ["No round was disturbed by other processes, and none was unsteady."]


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def machine_facts(fingerprint: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A machine's fingerprint as lines; what is not known says why."""
    lines: list[tuple[str, str]] = []
    for key, item in fingerprint.items():
        if key == "why" and isinstance(item, Mapping):
            continue
        if isinstance(item, str | Mapping):
            lines += flat({key: item})
        else:
            lines.append((str(key).replace("_", " "), show_fact(str(key), fingerprint)))
    return lines


def flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as lines: ('cpu model', 'AMD ...')."""
    lines: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(item, Mapping):
            lines += flat(item, f"{name} · ")
        elif isinstance(item, list | tuple):
            lines.append((name, ", ".join(str(i) for i in item)))
        else:
            lines.append((name, "unknown" if item is None else str(item)))
    return lines
