"""Ranking entries by objectives whose differences may be noise.

One round: the leader of the first objective by point estimate; all that cannot be told from it stay; among these the
same with the next objective; what is left is ordered by point estimates, size, name. The winner takes the rank, and
the next round is played without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING

from edgewise.selector.budgets import ROW_METRICS, metric_of
from edgewise.selector.weighted import Column, weighted
from edgewise.selector.words import finite, point
from edgewise.types import Entry
from edgewise.units import METRICS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Indices = NDArray[np.int64]

PairedComparison = Callable[[Entry, Entry, str], tuple[float, float] | None]
"""(a, b, metric) -> (metric of a minus metric of b, standard error of that difference), canonical unit, compared row by
row; None where the two were not measured on the same rows."""


@dataclass(frozen=True)
class Gap:
    """How far one entry is ahead of another in one objective, and how much of that may be noise; canonical unit."""

    ahead: float
    noise: float

    @property
    def tied(self) -> bool:
        return self.ahead <= self.noise


@dataclass(frozen=True)
class Stage:
    """One objective of one round."""

    column: int
    leader: int
    before: Indices
    after: Indices


@dataclass(frozen=True)
class Contest:
    """Entries that compete, with all that a round needs."""

    entries: Sequence[Entry]
    columns: tuple[Column, ...]
    order: Indices
    """(n,) place of each entry by point estimates, size, name: what decides when nothing else does."""
    z: float
    objective: tuple[str, ...] = ()
    """Names of the objectives; with weights they make one column together."""
    paired: PairedComparison | None = None
    seen: dict[tuple[int, int, int], Gap | None] = field(default_factory=dict)
    """Paired comparisons already made: (column, leader, other)."""

    def gap(self, column: int, leader: int, other: int) -> Gap:
        """Of two entries that both have this objective."""
        if (found := self._paired_gap(column, leader, other)) is not None:
            return found
        c = self.columns[column]
        # Bounds of a difference from the bounds of its parts (Zou and Donner 2008, MOVER): half widths add in squares.
        noise = math.hypot(float(c.worse[leader]), float(c.better[other]))
        return Gap(float(c.score[leader] - c.score[other]), noise)

    def tied(self, column: int, leader: int, others: Indices) -> NDArray[np.bool_]:
        """Which of `others` cannot be told from the leader. Where the leader lacks the metric, so do all."""
        import numpy as np

        c = self.columns[column]
        if np.isnan(c.score[leader]):
            return np.ones(len(others), np.bool_)
        ahead = c.score[leader] - c.score[others]
        worse, better = c.worse[leader], c.better[others]
        mask: NDArray[np.bool_] = (ahead <= 0) | (ahead**2 <= worse**2 + better**2)
        if self.paired is not None and c.name in ROW_METRICS:
            # No correlation makes the noise of a difference larger than the sum of the two half widths,
            # so that those further apart need no comparison row by row.
            reach = worse + better
            for i in np.flatnonzero(~np.isnan(ahead) & ((ahead <= reach) | (reach == 0))):
                mask[i] = self.gap(column, leader, int(others[i])).tied
        return mask

    def _paired_gap(self, column: int, leader: int, other: int) -> Gap | None:
        name = self.columns[column].name
        if self.paired is None or name not in ROW_METRICS or leader == other:
            return None
        key = (column, leader, other)
        if key not in self.seen:
            found = self.paired(self.entries[leader], self.entries[other], name)
            usable = found is not None and finite(found[0]) and finite(found[1])
            sign = 1.0 if METRICS[name].better == "higher" else -1.0
            self.seen[key] = Gap(sign * found[0], self.z * abs(found[1])) if found is not None and usable else None
        return self.seen[key]

    def play(self, left: Indices, start: int = 0) -> tuple[int, list[Stage]]:
        """One round among the entries `left`, from the column `start` on: the winner and how it came about."""
        stages: list[Stage] = []
        for column in range(start, len(self.columns)):
            leader = self._leader(self.columns[column], left)
            after = left[self.tied(column, leader, left)]
            stages.append(Stage(column, leader, left, after))
            left = after
            if len(left) == 1:
                break
        return int(left[self.order[left].argmin()]), stages

    def _leader(self, column: Column, left: Indices) -> int:
        import numpy as np

        score = column.score[left]
        if np.isnan(score).all():
            return int(left[self.order[left].argmin()])
        best = left[score == np.nanmax(score)]
        return int(best[self.order[best].argmin()])

    def rank(self) -> tuple[list[int], list[Stage]]:
        """Entries from best to worst, and the stages of the first round."""
        import numpy as np

        ranked: list[int] = []
        first: list[Stage] = []
        left: Indices = np.arange(len(self.entries), dtype=np.int64)
        while left.size:
            winner, stages = self.play(left)
            first = first or stages
            ranked.append(winner)
            left = left[left != winner]
        return ranked, first


def set_up(
    entries: Sequence[Entry],
    objective: Sequence[str],
    references: dict[str, str],
    confidence: float,
    *,
    weights: Sequence[float] = (),
    paired: PairedComparison | None = None,
) -> Contest:
    """A contest among `entries`. references: metric -> the recipe that it is measured against. weights: of the
    objectives, which then make one column together (`edgewise.selector.weighted`)."""
    z = NormalDist().inv_cdf(confidence)
    columns = tuple(_column(entries, name, references.get(name), z) for name in objective)
    if weights:
        columns = (weighted(columns, weights),)
    return Contest(entries, columns, _order(entries, columns), z, tuple(objective), paired)


def _column(entries: Sequence[Entry], name: str, reference: str | None, z: float) -> Column:
    import numpy as np

    higher = METRICS[name].better == "higher"
    rows = [_row(entry, name, reference, higher, z) for entry in entries]
    table = np.array(rows, np.float64).reshape(len(rows), 3)
    return Column(name, table[:, 0], table[:, 1], table[:, 2])


def _row(entry: Entry, name: str, reference: str | None, higher: bool, z: float) -> tuple[float, float, float]:
    """Score, how much worse, how much better."""
    metric = metric_of(entry, name, reference)
    value = point(metric)
    if metric is None or value is None:
        return math.nan, 0.0, 0.0
    below = 0.0 if metric.low is None else _half_width(value - metric.low, metric.level, z)
    above = 0.0 if metric.high is None else _half_width(metric.high - value, metric.level, z)
    return (value, below, above) if higher else (-value, above, below)


def _half_width(width: float, level: float | None, z: float) -> float:
    """Distance from the value to a one-sided bound, brought from its level to the one that z stands for."""
    if not math.isfinite(width):
        return math.inf
    # Some intervals (bootstrap percentiles) can lie wholly on one side of the value.
    width = max(0.0, width)
    if level is None:
        return width
    at = NormalDist().inv_cdf(level) if 0.5 < level < 1 else 0.0
    return width * z / at if at > 0 else math.inf


def _order(entries: Sequence[Entry], columns: tuple[Column, ...]) -> Indices:
    import numpy as np

    sizes = np.array([_size(entry) for entry in entries], np.float64)
    names = np.empty(len(entries), np.int64)
    names[sorted(range(len(entries)), key=lambda i: entries[i].key)] = np.arange(len(entries))
    # lexsort takes the key that matters most last, and puts NaN at the end.
    by = np.lexsort((names, sizes, *(-c.score for c in reversed(columns))))
    order = np.empty(len(entries), np.int64)
    order[by] = np.arange(len(entries))
    return order


def _size(entry: Entry) -> float:
    value = point(entry.metrics.get("size"))
    return math.nan if value is None else value
