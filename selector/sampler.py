"""Which points to look at in a space too large to look at all of it: Optuna's tree-structured Parzen estimator.

J. Bergstra et al., Algorithms for hyper-parameter optimization, NeurIPS 2011. It proposes; the race decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from edgewise.errors import need_extra
from edgewise.selector.budgets import metric_of, over
from edgewise.selector.known import Known, Rules
from edgewise.selector.weighted import difference
from edgewise.selector.words import point
from edgewise.types import Budget

_UNKNOWN = 10.0
"""Added for a budget whose metric is not known."""
_LATER = 0.1
"""What an objective weighs beside the one before it, where no weights are given."""
_AGAIN = 20
"""Proposals that were made before, in a row, until what is left is taken in turn."""


class Sampler:
    """Proposes points, and learns from what was found of them.

    Raises MissingExtraError where Optuna is not installed.
    """

    def __init__(self, points: Mapping[str, Known], rules: Rules, seed: int = 0) -> None:
        try:
            import optuna
        except ImportError as error:
            raise need_extra("search", error) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._rules = rules
        self._keys = {_place(known): key for key, known in points.items()}
        self._left = dict.fromkeys(points)
        names = next(iter(self._keys))
        choices = [list(dict.fromkeys(place[i] for place in self._keys)) for i in range(len(names))]
        kind = optuna.distributions.CategoricalDistribution
        self._space: dict[str, Any] = {str(i): kind(found) for i, found in enumerate(choices)}
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=24))
        self._asked: dict[str, Any] = {}
        self._best: dict[str, float] = {}
        """Metric -> the first value that was seen: what others are compared with."""

    def ask(self, count: int) -> list[str]:
        """So many keys that were not proposed before; fewer where there are no more."""
        found: list[str] = []
        misses = 0
        while len(found) < count and self._left:
            trial: Any = self._study.ask(self._space)
            key = self._keys.get(tuple(trial.params[str(i)] for i in range(len(self._space))))
            if key is None or key not in self._left:
                # No such point (an ONNX file has one recipe), or it was proposed: no trial to learn from.
                self._study.tell(trial, state=_fail())
                misses += 1
                if misses <= _AGAIN:
                    continue
                key, trial = next(iter(self._left)), None
            misses = 0
            del self._left[key]
            self._asked[key] = trial
            found.append(key)
        return found

    def tell(self, known: Iterable[Known]) -> None:
        """What was found of points that were asked for."""
        for k in known:
            trial = self._asked.pop(k.entry.key, None)
            if trial is not None:
                self._study.tell(trial, self.cost(k))

    def cost(self, known: Known) -> float:
        """How far from feasible, by the values so far; then, far smaller, how good in the objectives. Low is good."""
        if known.entry.status != "ok":
            return 100 * _UNKNOWN
        rules = self._rules
        broken = sum(_overshoot(known, b) for b in rules.budgets)
        weights = rules.weights or [_LATER**i for i in range(len(rules.objective))]
        worse = 0.0
        for name, weight in zip(rules.objective, weights, strict=True):
            value = point(metric_of(known.entry, name, rules.references.get(name)))
            apart = None if value is None else difference(name, self._best.setdefault(name, value), value)
            worse += weight * (1.0 if apart is None else apart)
        return 1000 * broken + worse


def _overshoot(known: Known, budget: Budget) -> float:
    value = point(metric_of(known.entry, budget.metric, budget.relative_to))
    if value is None:
        return _UNKNOWN
    beyond = over(budget, value)
    return max(0.0, beyond / (abs(budget.limit) or 1.0)) if math.isfinite(beyond) else _UNKNOWN


def _place(known: Known) -> tuple[Any, ...]:
    """What tells a point from the others: candidate, recipe, and its run settings."""
    entry = known.entry
    assert entry.target is not None
    run = entry.target.run
    return entry.candidate, entry.recipe, run.provider, run.threads, run.max_length, run.batch_size


def _fail() -> Any:
    import optuna

    return optuna.trial.TrialState.FAIL
