"""A graph on labelled rows, in an order in which one that loses too much shows it soon, and stopped once it has.

It has for certain: even if every row that is left gained all that it can, since no score is above 1, the mean would
drop by more than allowed. So stopping changes no decision, and what is within the limit has run on all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from edgewise.errors import DataError

SLACK = 1e-9
"""Two sums of the same scores in another order differ by less."""
_LEAST = 0.1
"""Share of the rows that have something to lose which run in any case, so that the drop can be estimated."""
_STEPS = 60

Score = Callable[[Path, Sequence[int]], Iterable[float]]
"""(graph, numbers of val rows) -> their scores, in that order, each when it is asked for: 1 for right, 0 for wrong, a
share in between, below 0 where a number is far off; NaN counts as 0."""


@dataclass(frozen=True)
class Reference:
    """What fp32 scores on the val rows."""

    scores: np.ndarray
    """float64 [rows], at most 1; NaN where a row has none, and does not count."""
    margins: np.ndarray | None = None
    """float64 [rows]: how far the nearest other answer is, in any unit; without them rows run as they come."""
    leads: Sequence[np.ndarray] | None = None
    """Of each answer of each row: how far the right one leads in the logits, below 0 where another does. They stand for
    `margins`, and say how much noise turns how many answers."""

    @cached_property
    def order(self) -> np.ndarray:
        """Numbers of the rows that count, int64: those that can gain most first, for only then losses are certain;
        among equals those whose answer turns most easily."""
        counted = np.flatnonzero(~np.isnan(self.scores))
        if not len(counted):
            raise DataError(f"none of the {len(self.scores)} val rows has a score: are they labelled?")
        if (most := float(self.scores[counted].max())) > 1 + SLACK:
            raise DataError(f"a val row has a score of {most:g} in fp32; expected at most 1")
        return counted[np.lexsort((self.nearest[counted], self.scores[counted]))]

    @cached_property
    def nearest(self) -> np.ndarray:
        """float64 [rows]: how far another answer is, 0 where that is not known."""
        if self.leads is not None:
            return np.array([np.abs(row).min(initial=np.inf) if len(row) else 0.0 for row in self.leads])
        return np.zeros(len(self.scores)) if self.margins is None else np.maximum(self.margins, 0)

    @cached_property
    def mean(self) -> float:
        return float(self.scores[self.order].mean())


@dataclass(frozen=True)
class Evaluation:
    """What is known of one graph."""

    scores: np.ndarray
    """float64 [rows]; NaN where it has not run."""
    rows: int
    """That it has run on."""
    whole: bool
    """It has run on all that count."""
    drop: float
    """Of the mean against fp32; where it was stopped the least that it can be."""
    expected: float
    """The drop; where it was stopped an estimate."""


def evaluate(reference: Reference, graph: Path, score: Score, limit: float = np.inf) -> Evaluation:
    """Run a graph on the rows, and stop where the mean is certain to drop by more than `limit` (of the score's unit).

    Raises DataError where `score` gives fewer scores than rows.
    """
    order, fp32 = reference.order, reference.scores
    found = np.full(len(fp32), np.nan)
    lost, gains, able, rows = 0.0, float((1 - fp32[order]).sum()), 0, 0
    enough = _LEAST * int((fp32[order] > 0).sum())
    for number, value in zip(order, score(graph, order.tolist()), strict=False):
        found[number] = 0.0 if np.isnan(value) else value
        lost += float(fp32[number] - found[number])
        gains -= float(1 - fp32[number])
        able, rows = able + bool(fp32[number] > 0), rows + 1
        if able >= enough and lost - gains > len(order) * (limit + SLACK):
            break
    else:
        if rows < len(order):
            raise DataError(f"{graph} has {rows} scores, and fp32 {len(order)}; expected one a row, of the same rows")
    whole = rows == len(order)
    drop = lost / len(order) if whole else (lost - gains) / len(order)
    return Evaluation(found, rows, whole, drop, drop if whole else _expected(reference, found))


def finish(reference: Reference, seen: Evaluation, graph: Path, score: Score) -> Evaluation:
    """Run the rows at which an evaluation was stopped."""
    rest = reference.order[seen.rows :].tolist()
    found = seen.scores.copy()
    found[rest] = [0.0 if np.isnan(value) else value for value in score(graph, rest)]
    drop = float((reference.scores - found)[reference.order].mean())
    return Evaluation(found, len(reference.order), True, drop, drop)


def _expected(reference: Reference, found: np.ndarray) -> float:
    """The drop if the rows to come lose as those before: the chance to lose an answer falls with its margin as under
    logistic noise, as wide as the losses so far say."""
    order, fp32 = reference.order, reference.scores
    margins = reference.nearest
    run = ~np.isnan(found[order])
    seen, unseen = order[run], order[~run]
    difference = fp32[seen] - found[seen]
    lost = float(np.maximum(difference, 0).sum())

    def loss(numbers: np.ndarray, width: float) -> float:
        # exp would overflow for a margin far beyond the width, where nothing is lost
        return float((np.maximum(fp32[numbers], 0) / (1 + np.exp(np.minimum(margins[numbers] / width, 700)))).sum())

    top = max(float(margins.max()), 1e-9)
    low, high = 1e-4 * top, 1e4 * top
    for _ in range(_STEPS):
        width = float(np.sqrt(low * high))
        low, high = (width, high) if loss(seen, width) < lost else (low, width)
    rate = min(lost / max(loss(seen, high), 1e-30), 2.0)  # 2: all of what is seen is lost
    return float((difference.sum() + rate * loss(unseen, high)) / len(order))
