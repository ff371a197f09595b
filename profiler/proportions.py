"""Intervals for accuracy, F1 and what a bundle loses against its reference: rows are what repeats.

All bounds are one-sided at `level`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgewise.errors import EdgewiseError
from edgewise.paired import Bounds, check_level, normal_quantile
from edgewise.profiler.statistics import RESAMPLES


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
