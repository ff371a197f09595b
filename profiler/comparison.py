"""A bundle against the reference recipe of the same candidate, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgewise.files import digest_json
from edgewise.paired import paired_drop, words_for_drop
from edgewise.profiler.joining import answer_settings
from edgewise.profiler.likelihood import compared_metrics, is_likelihood, ratio_on_slices, unavailable_ratio
from edgewise.profiler.proportions import wilson_bounds
from edgewise.profiler.store import Outcome, Store, key_of
from edgewise.types import Measurement, Metric

_LIMIT_POINTS = 0.5


def compare_with_reference(
    store: Store, measured: Sequence[Measurement], *, reference: str = "fp32", level: float = 0.95
) -> list[Measurement]:
    """`accuracy_drop` and `changed_answers` of each accuracy measurement against that of the reference recipe.

    Of language models it is `perplexity_ratio`, and of masked words `accuracy_drop` beside it.

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


def turned(pairs: Sequence[tuple[Outcome, Outcome]]) -> tuple[int, int, int]:
    """(right, then wrong; wrong, then right; another answer) of rows that were answered twice."""
    lost = sum(a.answer == a.label and b.answer != b.label for a, b in pairs)
    gained = sum(a.answer != a.label and b.answer == b.label for a, b in pairs)
    return lost, gained, sum(a.answer != b.answer for a, b in pairs)


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
    if is_likelihood(m):
        return replace(m, scenario="comparison", id=None, **_of_likelihoods(store, m, base, conditions, level))
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
        if (moved := _scores(store, m, base)) is not None:
            conditions["scores"] = moved
        if parts := m.conditions.get("slices"):
            conditions["slices"] = _by_slice(store, m, base, parts, level)
    return replace(m, scenario="comparison", conditions=conditions, metrics=metrics, id=None)


def _of_likelihoods(
    store: Store, m: Measurement, base: Measurement | None, conditions: dict[str, Any], level: float
) -> dict[str, Any]:
    """Conditions and metrics of a language model's comparison."""
    accuracy = m.metric("accuracy") is not None
    reference = conditions["settings"]["reference"]
    if base is None or m.id is None or base.id is None:
        why = f"no {reference} bundle of {m.candidate} was measured on the same rows and settings"
        return {"conditions": conditions, "metrics": unavailable_ratio(why, accuracy=accuracy)}
    pairs = list(zip(store.outcomes(base.id), store.outcomes(m.id), strict=True))
    if base.content_digest == m.content_digest:
        own = [Metric("perplexity_ratio", "number", 1.0, method="the reference itself")]
        own += [Metric("accuracy_drop", "points", 0.0, method="the reference itself")] if accuracy else []
        return {"conditions": conditions, "metrics": tuple(own)}
    metrics, words = compared_metrics(pairs, level, reference, accuracy=accuracy)
    conditions["words"] = words
    if parts := m.conditions.get("slices"):
        conditions["slices"] = ratio_on_slices(pairs, parts, level)
    return {"conditions": conditions, "metrics": metrics}


def _scores(store: Store, m: Measurement, base: Measurement) -> dict[str, float] | None:
    """Of two labels, how far the score of the second moved, and the threshold that calls it as often as the reference
    does at 0.5; None where there are more labels, or no scores.

    'largest_gap' is Kolmogorov and Smirnov's: between the two distributions, 0 to 1.
    """
    assert m.id is not None
    assert base.id is not None
    logits = [[o.logits for o in store.outcomes(number)] for number in (base.id, m.id)]
    if not logits[0] or any(x is None or len(x) != 2 for side in logits for x in side):
        return None
    was, now = (np.sort([1 / (1 + np.exp(x[0] - x[1])) for x in side if x is not None]) for side in logits)
    points = np.concatenate([was, now])
    ranks = [np.searchsorted(x, points, "right") / len(x) for x in (was, now)]
    called = int(np.count_nonzero(was > 0.5))
    ends = np.concatenate([[0.0], now, [1.0]])  # between two scores: that of a row must not decide by rounding
    threshold = float(ends[len(now) - called : len(now) - called + 2].mean())
    return {
        "largest_gap": float(np.max(np.abs(ranks[0] - ranks[1]))),
        "mean_moved": float(now.mean() - was.mean()),
        "called_by_reference": called / len(was),
        "called": float(np.count_nonzero(now > 0.5)) / len(now),
        "threshold": threshold,
    }


def score_words(scores: Mapping[str, float]) -> str:
    """How far the scores of two labels moved, for people."""
    moved = scores["mean_moved"]
    return (
        f"the largest gap between their distributions is {scores['largest_gap']:.3f} (Kolmogorov and Smirnov); on "
        f"average they moved by {moved:+.3f}; the second label is said of {scores['called']:.1%} of the rows instead "
        f"of {scores['called_by_reference']:.1%}, and with threshold={scores['threshold']:.4g} of as many as before"
    )


def _by_slice(
    store: Store, m: Measurement, base: Measurement, parts: Sequence[Mapping[str, Any]], level: float
) -> list[dict[str, Any]]:
    """The drop on each slice, in points, its bounds holding together at `level`; without labels the changed answers."""
    assert m.id is not None
    assert base.id is not None
    pairs = list(zip(store.outcomes(base.id), store.outcomes(m.id), strict=True))
    together = 1 - (1 - level) / len(parts)
    found = []
    for part in parts:
        rows = [pairs[i] for i in part["rows"]]
        lost, gained, changed = turned(rows)
        told: dict[str, Any] = {"slice": part["slice"], "n": len(rows), "changed": changed}
        if all(a.label is not None for a, _ in rows):
            drop = paired_drop(lost, gained, len(rows), together).points
            told |= {"drop": drop.value, "low": drop.low, "high": drop.high}
        found.append(told)
    return found


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
    if not pairs:
        return _unavailable("a number is no answer that is the same or another one"), ""
    lost, gained, changed = turned(pairs)
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
