"""Objectives as columns of numbers, and several of them weighed into one.

Weights compare relative changes: of two shares the difference counts (a point of accuracy is 0.01), of two times,
sizes or rates the logarithm of their ratio (1% is 0.01). So a weight says how much one point, or one per cent, is
worth beside one of another objective; and the order of two entries depends on no third one, as it would were each
objective scaled by the best and the worst at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgewise.units import METRICS, SIGNED, WORST

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SCORE = "weighted score"
"""Name of the column of several objectives."""
_HUNDREDTHS = ("bleu", "bleu_zh")
"""Plain numbers of 0 to 100."""


@dataclass(frozen=True)
class Column:
    """One objective over all entries, turned so that larger is better."""

    name: str
    score: Floats
    """(n,) NaN where it was not measured."""
    worse: Floats
    """(n,) how much worse it may be, at the confidence asked for; 0 where the value has no interval."""
    better: Floats
    """(n,) how much better it may be."""


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights with the sum 1."""
    total = sum(weights)
    return tuple(w / total for w in weights)


def weighted(columns: Sequence[Column], weights: Sequence[float]) -> Column:
    """The weighted sum of the objectives on one scale each, and its bounds: the half widths add in squares."""
    import numpy as np

    parts = [_scaled(c) for c in columns]
    score = np.sum([w * p.score for w, p in zip(weights, parts, strict=True)], axis=0)
    worse, better = (
        np.sqrt(np.sum([(w * getattr(p, side)) ** 2 for w, p in zip(weights, parts, strict=True)], axis=0))
        for side in ("worse", "better")
    )
    return Column(SCORE, score, worse, better)


def difference(metric: str, best: float, value: float) -> float | None:
    """How much worse `value` is than `best`, on the scale of the weights: 0.01 is one point of a share, or one per cent
    of anything else. None where a ratio cannot be made."""
    import numpy as np

    sign = 1.0 if METRICS[metric].better == "higher" else -1.0
    two = sign * np.array([best, value], np.float64)
    score = _scaled(Column(metric, two, np.zeros(2), np.zeros(2))).score
    return None if np.isnan(score).any() else float(score[0] - score[1])


def _scaled(column: Column) -> Column:
    """0.01 is one point of a share, or one per cent of anything else. NaN where a ratio cannot be made (0 or less)."""
    import numpy as np

    name = column.name.removeprefix(WORST)
    unit = METRICS[column.name].unit
    if unit in ("1", "points") or name in SIGNED or name in _HUNDREDTHS:
        factor = 0.01 if unit == "points" or name in _HUNDREDTHS else 1.0
        return Column(column.name, *(factor * x for x in (column.score, column.worse, column.better)))
    sign = 1.0 if METRICS[column.name].better == "higher" else -1.0
    with np.errstate(divide="ignore", invalid="ignore"):

        def log(score: Floats) -> Floats:
            value = np.where(sign * score > 0, sign * score, np.nan)
            return np.asarray(sign * np.log(value), np.float64)

        score, low, high = log(column.score), log(column.score - column.worse), log(column.score + column.better)
    # A bound of 0 or less is as far off as can be.
    return Column(
        column.name, score, np.where(np.isnan(low), np.inf, score - low), np.where(np.isnan(high), np.inf, high - score)
    )
