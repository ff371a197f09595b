"""The Pareto front of many points."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def dominators(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each point the index of one on the front that dominates it, or -1 for the front itself.

    scores: (n, objectives) float64, larger is better. A point dominates another when it is at least as good in every
    objective and better in one; equal points do not dominate each other. A point with NaN dominates nothing and is
    dominated by nothing (-1); leave it out of the front by its NaN. The loop runs once a distinct point of the front.
    """
    import numpy as np

    result = np.full(len(scores), -1, np.int64)
    complete = np.flatnonzero(~np.isnan(scores).any(axis=1))
    if not complete.size:
        return result
    points, first, group = np.unique(-scores[complete], axis=0, return_index=True, return_inverse=True)
    # np.unique sorts the rows, best first: the first one left is dominated by none.
    by = np.full(len(points), -1, np.int64)
    left = np.arange(len(points))
    while left.size:
        pivot, left = left[0], left[1:]
        beaten = (points[left] >= points[pivot]).all(axis=1)
        by[left[beaten]] = first[pivot]
        left = left[~beaten]
    group_by = by[group.reshape(-1)]
    result[complete] = np.where(group_by >= 0, complete[group_by], -1)
    return result
