"""All points of a race as columns of numbers, larger is better."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from edgewise.selector.budgets import check_budget
from edgewise.selector.contest import set_up
from edgewise.selector.known import Known, Rules, Source, as_guessed, entry_at_best, pairing_of, source_of


@dataclass
class Board:
    """All points as columns of numbers, larger is better."""

    points: Mapping[str, Known]
    rules: Rules
    exclude: Collection[str]
    gone: Mapping[str, str]
    """Key -> reason of what was dropped before."""
    needed: Collection[str]
    """Keys of points that must be measured in full though they cannot win: see `leader_in_the_way`."""
    memo: dict[tuple[str, str], tuple[float, float]]
    items: list[Known] = field(init=False)
    """Those that did not fail and were not dropped."""

    def __post_init__(self) -> None:
        import numpy as np

        rules = self.rules
        self.items = [k for k in self.points.values() if k.entry.status == "ok" and k.entry.key not in self.gone]
        arguments = (rules.objective, rules.references, rules.confidence)
        entries, paired = [k.entry for k in self.items], pairing_of(self.points, self.memo)
        self.real = set_up(entries, *arguments, weights=rules.weights, paired=paired)
        hoped = set_up([entry_at_best(k, rules) for k in self.items], *arguments, weights=rules.weights)
        self.hope = [np.where(np.isnan(c.score), np.inf, c.score) for c in hoped.columns]
        self.guess = [np.where(np.isnan(c.score), np.inf, c.score) for c in self.real.columns]
        self.names: list[tuple[str, ...]] = (
            [tuple(rules.objective)] if rules.weights else [(n,) for n in rules.objective]
        )
        self.incumbents = [i for i, k in enumerate(self.items) if k.full and self._keeps_all(k)]

    def _keeps_all(self, known: Known) -> bool:
        rules = self.rules
        return known.entry.key not in self.exclude and all(
            check_budget(known.entry, b, rules.confidence).met for b in rules.budgets
        )

    def as_guessed(self) -> Board:
        """The same points in the same order, the values of looks in the place of their bounds."""
        return replace(self, points={k.entry.key: as_guessed(k) for k in self.items}, gone={})

    def exact(self, column: int, i: int) -> bool:
        """Whether a point stands in a column as the choice will see it."""
        return all(self.items[i].exact(name) for name in self.names[column])

    def sources(self, column: int) -> list[Source]:
        return list(dict.fromkeys(source_of(name) for name in self.names[column]))

    def open(self, dropped: Mapping[str, str]) -> list[Known]:
        """Neither dropped nor measured in full."""
        return [k for k in self.items if not k.full and k.entry.key not in dropped]
