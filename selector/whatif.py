"""How the choice changes as one budget moves and the others stay: the exact limits at which it does.

A budget holds on the bound of an entry's interval, so that the feasible entries change at these bounds alone; the
choice is made anew at each that could change it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgewise.selector.budgets import metric_of
from edgewise.selector.words import finite, gap, label, limit_between, loosened, point
from edgewise.showing import show
from edgewise.types import Budget, BudgetCheck, Entry, WhatIf

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgewise.selector.contest import Contest

    Indices = NDArray[np.int64]

NOTHING = "nothing keeps all budgets"
_LAST_DIGITS = 4
"""Of the limit beyond which there is nothing: it is rounded to what nothing keeps."""
CHANGES = 3
"""Of each budget and direction: so many are told, the nearest first."""


@dataclass(frozen=True)
class Step:
    """One change of the choice."""

    at: float
    """The limit, turned so that smaller is stricter."""
    winner: int | None
    """None: nothing keeps a stricter one."""
    room: float = math.inf
    """The next looser bound, which lets another entry in: the limit must stay below it."""


def changes(contest: Contest, checks: Sequence[Sequence[BudgetCheck]], budgets: Sequence[Budget]) -> tuple[WhatIf, ...]:
    """The nearest changes of the choice for each budget: looser limits first, then stricter ones.

    contest: of the entries that may be chosen, feasible or not. checks: of each of its entries, in the order of
    `budgets`.
    """
    import numpy as np

    met = np.array([[c.met for c in row] for row in checks], np.bool_).reshape(len(checks), len(budgets))
    found: list[WhatIf] = []
    for b, budget in enumerate(budgets):
        others = np.delete(met, b, axis=1).all(axis=1)
        strict = np.array([_strictness(row[b]) for row in checks], np.float64)
        able = np.flatnonzero(others & np.isfinite(strict))
        limit = budget.limit if budget.op == "<=" else -budget.limit
        inside = able[strict[able] <= limit]
        now = contest.play(inside)[0] if inside.size else None
        sign = 1.0 if budget.op == "<=" else -1.0
        for step in (*_looser(contest, strict, able, limit), *_stricter(contest, strict, inside)):
            key = None if step.winner is None else contest.entries[step.winner].key
            found.append(WhatIf(budget, sign * step.at, key, _words(contest, budget, step, now)))
    return tuple(found)


def _strictness(check: BudgetCheck) -> float:
    """The bound that must keep the limit, turned so that smaller is better; NaN where there is none."""
    if check.bound is None or not finite(check.bound):
        return math.nan
    return check.bound if check.budget.op == "<=" else -check.bound


def _looser(contest: Contest, strict: NDArray[np.float64], able: Indices, limit: float) -> list[Step]:
    import numpy as np

    left = able[strict[able] <= limit]
    winner, stages = contest.play(left) if left.size else (None, [])
    outside = able[strict[able] > limit]
    steps: list[Step] = []
    bounds = np.unique(strict[outside])
    for at, room in zip(bounds, [*bounds[1:], math.inf], strict=False):
        new = outside[strict[outside] == at]
        left = np.concatenate([left, new])
        # Who is neither ahead of the leader of the first objective nor tied with it changes nothing.
        if winner is not None and not contest.tied(0, stages[0].leader, new).any():
            continue
        again, stages = contest.play(left)
        if again != winner:
            winner = again
            steps.append(Step(float(at), winner, float(room)))
        if len(steps) == CHANGES:
            break
    return steps


def _stricter(contest: Contest, strict: NDArray[np.float64], inside: Indices) -> list[Step]:
    import numpy as np

    left = inside
    if not left.size:
        return []
    winner, stages = contest.play(left)
    steps: list[Step] = []
    for at in np.unique(strict[left])[::-1]:
        out = left[strict[left] == at]
        left = left[strict[left] < at]
        if not left.size:
            return [*steps, Step(float(at), None)]
        if not np.isin(out, stages[0].after).any():
            continue
        again, stages = contest.play(left)
        if again != winner and len(steps) < CHANGES:
            winner = again
            steps.append(Step(float(strict[left].max()), winner, float(at)))
        winner = again
    return steps


def _words(contest: Contest, budget: Budget, step: Step, now: int | None) -> str:
    sign = 1.0 if budget.op == "<=" else -1.0
    then = step.winner
    if then is None:
        word = "below" if budget.op == "<=" else "above"
        exact = math.isclose(loosened(sign * step.at, budget), sign * step.at, rel_tol=1e-12)
        digits = 3 if exact else _LAST_DIGITS
        limit = show(loosened(sign * step.at, budget, digits, stricter=True), budget.unit, digits)
        return f"{budget.metric} {word} {limit}: {NOTHING}"
    start = f"with {limit_between(budget, sign * step.at, sign * step.room)}: {label(contest.entries[then])}"
    parts = [_against(contest.entries, name, then, now, budget) for name in contest.objective]
    return ", ".join([start, *parts])


def _against(entries: Sequence[Entry], name: str, then: int, now: int | None, budget: Budget) -> str:
    """'accuracy 83.10%, 1.30 points more'."""
    reference = budget.relative_to if budget.metric == name else None
    metric = metric_of(entries[then], name, reference)
    value = point(metric)
    if metric is None or value is None:
        return f"{name} not measured"
    text = f"{name} {show(value, metric.unit)}"
    before = point(metric_of(entries[now], name, reference)) if now is not None else None
    if before is None:
        return text
    if before == value:
        return f"the same {name}"
    word = "more" if value > before else "less"
    return f"{text} ({gap(value - before, metric.unit)} {word})"
