"""The choice among very many points, as arrays: which of them are worth to be read and judged in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

from edgewise.selector.contest import Contest
from edgewise.selector.weighted import Column, normalised, weighted
from edgewise.types import Budget
from edgewise.units import METRICS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]

SHOWN = 200
"""Points that are judged in words."""


def best_points(
    columns: Mapping[str, Floats],
    budgets: Sequence[Budget],
    objective: Sequence[str],
    *,
    confidence: float = 0.95,
    weights: Sequence[float] = (),
) -> tuple[Indices, int]:
    """(places of the winner, all that tie with it to the end, and the next best; how many keep every budget).

    columns: metric -> (n, 4) value, low, high, level, NaN where there is none; level 0 is that of an estimate without
    bounds, which keeps no budget. The winner is that of `select` where
    nothing is compared row by row. A bound counts at `confidence` or above.
    """
    import numpy as np

    n = len(next(iter(columns.values()))) if columns else 0
    feasible = np.ones(n, np.bool_)
    for budget in budgets:
        feasible &= _keeps(columns[budget.metric], budget, confidence)
    left = np.flatnonzero(feasible)
    if not left.size:
        return left, 0
    z = NormalDist().inv_cdf(confidence)
    parts = tuple(_column(columns[name][left], name, z) for name in objective)
    made = (weighted(parts, normalised(weights)),) if weights else parts
    order = np.empty(len(left), np.int64)
    sizes = columns["size"][left, 0] if "size" in columns else np.zeros(len(left))
    by = np.lexsort((sizes, *(-c.score for c in reversed(made))))
    order[by] = np.arange(len(left))
    contest = Contest((), made, order, z, tuple(objective))
    winner, stages = contest.play(np.arange(len(left), dtype=np.int64))
    tied = stages[-1].after if stages else np.array([winner])
    tied = tied[np.argsort(order[tied])]
    chosen = list(dict.fromkeys([winner, *tied.tolist(), *by.tolist()]))[:SHOWN]
    return left[np.array(chosen, np.int64)], len(left)


def _keeps(column: Floats, budget: Budget, confidence: float) -> NDArray[np.bool_]:
    """As `check_budget`, without its words."""
    import numpy as np

    value, low, high, level = column.T
    bound = high if budget.op == "<=" else low
    exact = np.isnan(low) & np.isnan(high) & ~(level == 0)
    held = np.where(exact, value, np.where(level >= confidence - 1e-9, bound, np.nan))
    keeps: NDArray[np.bool_] = held <= budget.limit if budget.op == "<=" else held >= budget.limit
    return keeps & np.isfinite(held)


def _column(column: Floats, name: str, z: float) -> Column:
    """As `contest` makes it of entries."""
    import numpy as np

    value, low, high, level = column.T
    level = np.where(level > 0, level, np.nan)
    normal = NormalDist()
    at = np.array([normal.inv_cdf(x) if 0.5 < x < 1 else np.nan for x in np.unique(level[~np.isnan(level)])])
    levels = np.unique(level[~np.isnan(level)])
    scale = np.full(len(value), 1.0)
    for one, quantile in zip(levels, at, strict=True):
        scale[level == one] = z / quantile if quantile > 0 else np.inf
    below, above = (np.nan_to_num(np.maximum(0.0, x), nan=0.0) * scale for x in (value - low, high - value))
    higher = METRICS[name].better == "higher"
    return Column(name, value, below, above) if higher else Column(name, -value, above, below)


def may_be_beaten(best: Floats, cut: float) -> bool:
    """Whether a point with the value `cut`, whose interval is not known, may tie with the best one: (value, low, high,
    level). Taken generously: within twice the wider side of its interval either way, or exactly the same."""
    value, low, high, _ = (float(x) for x in best)
    half = max((abs(x - value) for x in (low, high) if not math.isnan(x)), default=0.0)
    return abs(cut - value) <= 2 * 2**0.5 * half
