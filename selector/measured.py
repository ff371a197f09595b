"""The report's table of measurements: numbers, methods and conditions, each long text once. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from edgewise.selector.views import cell
from edgewise.selector.words import percent
from edgewise.types import Measurement, Metric

_ELSEWHERE = {"fingerprint": "see Machines", "slices": "see By slice", "roofline": "see Roofline"}
"""Conditions that have a table of their own."""


def measurement_rows(measurements: Iterable[Measurement]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Every measurement with its metrics and conditions; long conditions stand once, by number."""
    notes: dict[str, str] = {}
    methods: dict[str, str] = {}
    rows = []
    for number, m in enumerate(measurements, start=1):
        rows.append(
            {
                "id": m.id if m.id is not None else number,
                "m": m,
                "target": m.target.text() if m.target else "-",
                "metrics": [_metric_words(x, methods) for x in m.metrics],
                "conditions": [_condition(k, v, notes) for k, v in m.conditions.items()],
            }
        )
    return rows, {**{ref: text for text, ref in methods.items()}, **{ref: text for text, ref in notes.items()}}


def _metric_words(metric: Metric, methods: dict[str, str]) -> dict[str, str]:
    shown = cell(metric)
    parts = [shown.small] if shown.small else []
    parts += [f"at {percent(metric.level)}"] if metric.level is not None and shown.small else []
    parts += [f"n {metric.n:,}"] if metric.n else []
    ref = methods.setdefault(metric.method, f"M{len(methods) + 1}") if metric.method else ""
    return {
        "name": metric.name,
        "text": shown.text,
        "detail": ", ".join(parts),
        "kind": shown.kind,
        "why": metric.why,
        "method": ref,
    }


def _condition(key: str, value: Any, notes: dict[str, str]) -> dict[str, str]:
    if key in _ELSEWHERE:
        return {"key": key, "text": _ELSEWHERE[key], "ref": ""}
    if key.endswith("digest") and isinstance(value, str):
        return {"key": key, "text": value[:19], "ref": ""}
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str, sort_keys=True)
    if len(text) <= 60:
        return {"key": key, "text": text, "ref": ""}
    whole = f"{key}: {text}"
    return {"key": key, "text": "", "ref": notes.setdefault(whole, f"C{len(notes) + 1}")}
