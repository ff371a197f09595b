"""Intervals for accuracy, F1 and what a bundle loses against its reference: rows are what repeats.

All bounds are one-sided at `level`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from edgewise.errors import EdgewiseError
from edgewise.profiler.statistics import RESAMPLES, Bounds, check_level

_ENOUGH_ROWS = 10**9
"""Above this, 'more rows' is no advice."""


def normal_quantile(level: float) -> float:
    """z such that P(Z <= z) = level."""
    return NormalDist().inv_cdf(check_level(level))


def wilson_bounds(hits: float, n: int, level: float) -> Bounds:
    """A share of n rows, with Wilson's score bounds (E. B. Wilson, JASA 1927;22:209-212)."""
    if n < 1 or not 0 <= hits <= n:
        raise EdgewiseError(f"{hits} of {n} rows is no share; expected at least one row")
    z2 = normal_quantile(level) ** 2
    share = hits / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return Bounds(share, max(0.0, centre - half), min(1.0, centre + half), n, "Wilson score")


def confusion(predictions: Sequence[int], references: Sequence[int], classes: int) -> Any:
    """Counts [reference, prediction] as int64."""
    cells = np.asarray(references, dtype=np.int64) * classes + np.asarray(predictions, dtype=np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def f1_of(counts: Any) -> Any:
    """F1 from confusion counts [..., reference, prediction], as `edgewise.metrics` defines it.

    With two classes that of class 1; with more the mean over the classes that stand in predictions or references.
    """
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    either = counts.sum(axis=-1) + counts.sum(axis=-2)
    per_class = np.divide(2.0 * right, either, out=np.zeros(right.shape), where=either > 0)
    if counts.shape[-1] == 2:
        return per_class[..., 1]
    return per_class.sum(axis=-1) / np.maximum(1, (either > 0).sum(axis=-1))


def f1_bounds(counts: Any, level: float, *, seed: int = 0, resamples: int = RESAMPLES) -> Bounds:
    """F1 with bounds by a bootstrap over rows: drawing rows with replacement is drawing the cells of the confusion."""
    check_level(level)
    n = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(n, counts.ravel() / n, size=resamples)
    scores = f1_of(drawn.reshape(resamples, *counts.shape))
    low, high = (float(x) for x in np.quantile(scores, [1 - level, level]))
    return Bounds(float(f1_of(counts)), low, high, n, "bootstrap over rows")


@dataclass(frozen=True)
class PairedDrop:
    """What a bundle loses against its reference on the same rows."""

    lost: int
    """Rows that only the reference answered right."""
    gained: int
    """Rows that only the bundle answered right."""
    n: int
    points: Bounds
    """Drop in percentage points; positive is a loss."""
    level: float


def paired_drop(lost: int, gained: int, n: int, level: float) -> PairedDrop:
    """The drop (lost - gained) / n in percentage points with Tango's score bounds.

    T. Tango, Statistics in Medicine 1998;17:891-908: the difference of two paired proportions, from the constrained
    likelihood. With no row changed the bound is not 0 but z^2 / (n + z^2): no change seen is no proof of no change.
    """
    if n < 1 or min(lost, gained) < 0 or lost + gained > n:
        raise EdgewiseError(f"lost {lost}, gained {gained} of {n} rows cannot be; expected at least one row")
    z = normal_quantile(level)
    low, high = (100 * _tango_bound(lost, gained, n, sign * z) for sign in (-1, 1))
    return PairedDrop(lost, gained, n, Bounds(100 * (lost - gained) / n, low, high, n, "Tango paired score"), level)


def _tango_bound(lost: float, gained: float, n: float, z: float) -> float:
    """The difference at which Tango's score is -z: the upper bound for z > 0, the lower one for z < 0."""
    difference = (lost - gained) / n
    low, high = (difference, 1.0) if z > 0 else (-1.0, difference)
    # The score falls as the difference rises.
    return _bisect(lambda d: _tango_score(lost, gained, n, d) <= -z, low, high)


def _tango_score(lost: float, gained: float, n: float, difference: float) -> float:
    """Tango's statistic for H0: P(lost) - P(gained) = difference."""
    a = 2 * n
    b = -lost - gained + (2 * n - lost + gained) * difference
    c = -gained * difference * (1 - difference)
    # Rounding may push the root or the variance a hair below 0.
    share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * (2 * share + difference * (1 - difference))
    distance = lost - gained - n * difference
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The point between low and high where `holds` turns from False to True."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def more_rows_for(drop: PairedDrop, limit: float) -> int | None:
    """How many more rows it takes to say 'within `limit` points', if the shares of changed rows stay as they are.

    0 when it can be said already; None when no number of rows would do, the drop itself being at or over the limit.
    """
    if drop.points.high is not None and drop.points.high <= limit:
        return 0
    if drop.points.value >= limit:
        return None
    lost, gained = drop.lost / drop.n, drop.gained / drop.n
    z = normal_quantile(drop.level)

    def enough(n: float) -> bool:
        return 100 * _tango_bound(lost * n, gained * n, n, z) <= limit

    if not enough(_ENOUGH_ROWS):
        return None
    return max(1, math.ceil(_bisect(enough, drop.n, _ENOUGH_ROWS)) - drop.n)


def words_for_drop(drop: PairedDrop, limit: float = 0.5, reference: str = "fp32") -> str:
    """The sentence that the numbers allow.

    'Within 0.5 points' only when the one-sided upper bound is; else the drop, its bound, and how many more rows it
    would take.
    """
    share = f"{100 * drop.level:g}%"
    points, high = drop.points.value, drop.points.high or 0.0
    seen = (
        f"accuracy drop {points:.2f} points on {drop.n:,} rows, at most {high:.2f} at {share} "
        f"({drop.lost} answers lost, {drop.gained} gained)"
    )
    more = more_rows_for(drop, limit)
    if more == 0:
        return f"Within {limit:g} points of {reference}: {seen}."
    if more is None:
        return f"Not shown to be within {limit:g} points of {reference}: {seen}; more rows would not show it."
    return (
        f"Not shown to be within {limit:g} points of {reference}: {seen}; "
        f"about {more:,} more rows would, if the drop stays the same."
    )
