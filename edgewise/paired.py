"""Bounds of a value, and of what one model loses against another on the same rows: one definition for every room.

All bounds are one-sided at `level`. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from edgewise.errors import EdgewiseError, PlanError
from edgewise.types import Metric

_ENOUGH_ROWS = 10**9
"""Above this, 'more rows' is no advice."""


@dataclass(frozen=True)
class Bounds:
    """A value with its one-sided bounds, in the unit of the sample."""

    value: float
    low: float | None
    high: float | None
    n: int
    """Calls, processes or rows behind the value."""
    method: str
    why: str = ""
    """Why there are no bounds."""

    def as_metric(self, name: str, unit: str, level: float, scale: float = 1.0) -> Metric:
        """The metric that the store keeps; `scale` turns the sample's unit into `unit`."""
        low, high = (None if b is None else b * scale for b in (self.low, self.high))
        if low is not None and unit in _NEVER_BELOW_0 and self.value >= 0:
            low = max(0.0, low)
        has = low is not None or high is not None
        return Metric(
            name, unit, self.value * scale, low, high, level if has else None, self.method, self.n, "measured", self.why
        )


_NEVER_BELOW_0 = ("s", "B", "1/s", "J")
"""Units of what cannot be less than nothing."""
LARGEST = 700.0
"""exp of more is too large for a number, or nearly."""


def exp_or_none(value: float | None) -> float | None:
    """exp of a bound on the logarithm; None for one that is none, or too large for a number."""
    return None if value is None or value > LARGEST else math.exp(value)


def check_level(level: float) -> float:
    """`level`, if it is one. Raises PlanError."""
    if not 0.5 <= level < 1:
        raise PlanError(f"level is {level!r}; expected a confidence from 0.5 up to 1, for example 0.95")
    return level


def normal_quantile(level: float) -> float:
    """z such that P(Z <= z) = level."""
    return NormalDist().inv_cdf(check_level(level))


def ratio_of(tops: Sequence[float], sizes: Sequence[float]) -> tuple[float, list[float]]:
    """(sum of tops / sum of sizes, how far each row moves it): the linearised ratio of rows that are clusters, such as
    log-probabilities and tokens. The moves add up to 0; `spread_of` makes a standard error of them."""
    whole = math.fsum(sizes)
    ratio = math.fsum(tops) / whole
    return ratio, [(top - ratio * size) / whole for top, size in zip(tops, sizes, strict=True)]


def spread_of(moves: Sequence[float]) -> float:
    """The standard error of what two rows or more move, or of a sum of such numbers; 0 for one row."""
    n = len(moves)
    return math.sqrt(math.fsum(m * m for m in moves) * n / max(1, n - 1)) if n > 1 else 0.0


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


def rounded(rows: int) -> int:
    """Two significant digits, rounded up: what is extrapolated from a few lost answers is not known more closely.

    14,470 is 15,000; 97 is 97.
    """
    step: int = 10 ** max(0, len(str(rows)) - 2)
    return -(-rows // step) * step


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
    return words_for_bound(seen, more_rows_for(drop, limit), limit, reference)


def words_for_bound(seen: str, more: int | None, limit: float, reference: str = "fp32") -> str:
    """'Within 0.5 points of fp32: SEEN.', or that it is not shown to be, and how many more rows would show it.

    more: 0 where the bound is within the limit, None where no number of rows would show it.
    """
    if more == 0:
        return f"Within {limit:g} points of {reference}: {seen}."
    then = "more rows would not show it"
    if more is not None:
        then = f"about {rounded(more):,} more rows would, if the drop stays the same"
    return f"Not shown to be within {limit:g} points of {reference}: {seen}; {then}."
