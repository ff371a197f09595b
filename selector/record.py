"""A selection as JSON, for selection.json. Standard library only.

JSON has no NaN and no infinity: such a number is written as the string 'NaN', 'Infinity' or '-Infinity'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from edgewise.errors import StoreError
from edgewise.selector.several import Joint
from edgewise.types import (
    Budget,
    BudgetCheck,
    ConfirmTry,
    Entry,
    Metric,
    Selection,
    Target,
    Verdict,
    WhatIf,
    run_from_dict,
)

FORMAT = "1.0"
_NUMBERS = ("value", "low", "high", "level", "bound", "margin", "limit")
T = TypeVar("T")


def to_json(selection: Selection) -> dict[str, Any]:
    """The selection as a JSON-able dict; `chosen` is the key of the chosen entry, or None."""
    data = asdict(selection)
    data["chosen"] = selection.chosen.entry.key if selection.chosen else None
    for verdict, item in zip(selection.verdicts, data["verdicts"], strict=True):
        item["entry"] = {"key": verdict.entry.key, **item["entry"]}
    encoded: dict[str, Any] = _encode({"format": FORMAT, **data})
    return encoded


def joint_json(joint: Joint) -> dict[str, Any]:
    """The one bundle for several devices, and the others, as a JSON-able dict."""
    encoded: dict[str, Any] = _encode(asdict(joint))
    return encoded


def _encode(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _encode(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    # A number of numpy that came in with a metric.
    return _encode(value.item()) if hasattr(value, "item") else str(value)


def from_json(data: Mapping[str, Any]) -> Selection:
    """Read back what `to_json` wrote; unknown keys belong to a newer minor format and are ignored.

    Raises StoreError for another major format or a dict that is no selection.
    """
    if not isinstance(data, Mapping):
        raise StoreError(f"a selection is a JSON object; found {type(data).__name__}")
    major = str(data.get("format", "")).partition(".")[0]
    if major != FORMAT.partition(".")[0]:
        raise StoreError(f"selection of format {data.get('format')!r}; this edgewise reads {FORMAT}: select again")
    try:
        return _selection(data)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StoreError(f"not a selection of format {FORMAT}: {error!r}; select again") from error


def _selection(data: Mapping[str, Any]) -> Selection:
    verdicts = tuple(_verdict(v) for v in data["verdicts"])
    chosen = next((v for v in verdicts if v.entry.key == data["chosen"] and v.entry.status == "ok"), None)
    if chosen is None and data["chosen"] is not None:
        raise ValueError(f"the chosen {data['chosen']!r} is not among the verdicts")
    return Selection(
        device=data["device"],
        budgets=tuple(_plain(Budget, b) for b in data["budgets"]),
        objective=tuple(data["objective"]),
        confidence=data["confidence"],
        chosen=chosen,
        verdicts=verdicts,
        sentence=data["sentence"],
        confirmed=tuple(_try(t) for t in data.get("confirmed", ())),
        weights=tuple(data.get("weights", ())),
        left_out=str(data.get("left_out", "")),
        what_if=tuple(_plain(WhatIf, w, budget=_plain(Budget, w["budget"])) for w in data.get("what_if", ())),
    )


def _plain(kind: type[T], data: Mapping[str, Any], **changes: Any) -> T:
    """A flat dataclass from its dict, with the strings that stand for numbers read back."""
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]  # every kind here is a dataclass
    values = {k: float(v) if k in _NUMBERS and isinstance(v, str) else v for k, v in data.items() if k in known}
    return kind(**{**values, **changes})


def _verdict(data: Mapping[str, Any]) -> Verdict:
    return _plain(
        Verdict, data, entry=_entry(data["entry"]), checks=_checks(data), tied_with=tuple(data.get("tied_with", ()))
    )


def _checks(data: Mapping[str, Any]) -> tuple[BudgetCheck, ...]:
    return tuple(_plain(BudgetCheck, c, budget=_plain(Budget, c["budget"])) for c in data["checks"])


def _metrics(data: Mapping[str, Any]) -> dict[str, Metric]:
    return {name: _plain(Metric, metric) for name, metric in data.items()}


def _entry(data: Mapping[str, Any]) -> Entry:
    target = data["target"]
    where = Target(target["device"], run_from_dict(target["run"])) if target else None
    return _plain(Entry, data, target=where, metrics=_metrics(data.get("metrics", {})))


def _try(data: Mapping[str, Any]) -> ConfirmTry:
    return _plain(ConfirmTry, data, checks=_checks(data), metrics=_metrics(data.get("metrics", {})))
