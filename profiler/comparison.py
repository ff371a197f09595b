"""A bundle against the reference recipe of the same candidate, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edgewise.files import digest_json
from edgewise.paired import paired_drop, words_for_drop
from edgewise.profiler.joining import answer_settings
from edgewise.profiler.proportions import wilson_bounds
from edgewise.profiler.store import Store, key_of
from edgewise.types import Measurement, Metric

_LIMIT_POINTS = 0.5


def compare_with_reference(
    store: Store, measured: Sequence[Measurement], *, reference: str = "fp32", level: float = 0.95
) -> list[Measurement]:
    """`accuracy_drop` and `changed_answers` of each accuracy measurement against that of the reference recipe.

    measured: as `measure_accuracy` finds them, outcomes in the store. The reference is the same candidate's on the
    same device with the same settings and the same rows; where there is none, both metrics are 'unavailable' and say
    why. Stored under scenario 'comparison'; what is there already is not stored again.
    """
    usable = [m for m in measured if m.scenario == "accuracy" and m.status == "ok" and m.target is not None]
    by_place = {_place(m): m for m in usable if m.recipe == reference}
    found = []
    for m in usable:
        comparison = _compare(store, m, by_place.get(_place(m)), reference, level)
        stored = store.find(key_of(comparison))
        found.append(stored or replace(comparison, id=store.add(comparison)))
    return found


def _place(m: Measurement) -> tuple[Any, ...]:
    settings = answer_settings(m.target) if m.target else None
    return m.candidate, settings, m.stage, m.inputs_digest, m.conditions.get("fingerprint_digest")


def _compare(store: Store, m: Measurement, base: Measurement | None, reference: str, level: float) -> Measurement:
    settings = {"reference": reference, "reference_digest": base.content_digest if base else None, "level": level}
    conditions: dict[str, Any] = {
        **{k: m.conditions[k] for k in ("fingerprint", "fingerprint_digest", "device") if k in m.conditions},
        "settings": settings,
        "settings_digest": digest_json(settings),
        "measurement": m.id,
        "reference_measurement": base.id if base else None,
    }
    if base is None:
        metrics = _unavailable(f"no {reference} bundle of {m.candidate} was measured on the same rows and settings")
    elif base.content_digest == m.content_digest:
        metrics = (
            Metric("accuracy_drop", "points", 0.0, method="the reference itself"),
            Metric("changed_answers", "1", 0.0, method="the reference itself"),
            Metric("agreement", "1", 1.0, method="the reference itself"),
        )
    else:
        metrics, words = _paired(store, m, base, reference, level)
        conditions["words"] = words
    return replace(m, scenario="comparison", conditions=conditions, metrics=metrics, id=None)


def _unavailable(why: str) -> tuple[Metric, ...]:
    return tuple(
        Metric(name, unit, None, kind="unavailable", why=why)
        for name, unit in (("accuracy_drop", "points"), ("changed_answers", "1"), ("agreement", "1"))
    )


def _paired(
    store: Store, m: Measurement, base: Measurement, reference: str, level: float
) -> tuple[tuple[Metric, ...], str]:
    """The metrics, and the sentence that they allow."""
    assert m.id is not None
    assert base.id is not None
    pairs = list(zip(store.outcomes(base.id), store.outcomes(m.id), strict=True))
    lost = sum(a.answer == a.label and b.answer != b.label for a, b in pairs)
    gained = sum(a.answer != a.label and b.answer == b.label for a, b in pairs)
    changed = sum(a.answer != b.answer for a, b in pairs)
    same = (
        wilson_bounds(changed, len(pairs), level).as_metric("changed_answers", "1", level),
        wilson_bounds(len(pairs) - changed, len(pairs), level).as_metric("agreement", "1", level),
    )
    if any(a.label is None for a, _ in pairs):
        unknown = Metric("accuracy_drop", "points", None, kind="unavailable", why="the rows have no labels")
        return (unknown, *same), f"{changed} of {len(pairs):,} answers differ from those of {reference}."
    drop = paired_drop(lost, gained, len(pairs), level)
    return (drop.points.as_metric("accuracy_drop", "points", level), *same), words_for_drop(
        drop, _LIMIT_POINTS, reference
    )
