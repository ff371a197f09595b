"""The search of guarded quantization: which parts to keep in fp32, found with few runs over the val rows.

An evaluation runs val rows; everything else rests on a simulation on a few inputs (`sensitivity`). Noise in the logits
costs accuracy in proportion to its energy E while it is small, and no more than a guess when it is large, so a measured
drop D says what the drop is elsewhere: D * s(E') / s(E), with s(E) = E / (1 + E). That prediction chooses what to
evaluate; what is said of the result is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from edgewise.exporter.sensitivity import Part, Simulation
from edgewise.exporter.stopping import SLACK, Evaluation, Reference, Score, evaluate, finish

_WORTH = 0.01
"""Share of what all parts together cost below which giving less away is worth no further evaluation."""
_AIM = 0.75
"""Share of the allowed drop that the first guess aims for; halved with each guess that fails."""

Quantize = Callable[[tuple[str, ...]], Path]
"""(names of nodes to keep in fp32) -> the graph; each call a path of its own."""


@dataclass(frozen=True)
class Trial:
    """One int8 graph that was evaluated."""

    keep: tuple[str, ...]
    drop: float
    """Mean score of fp32 less that of this graph, 0.005 is half a point of accuracy; where it was stopped, the least
    that the drop can be."""
    given: float
    """What keeping costs: bytes, or what the `cost` callable counts in."""
    within: bool
    rows: int
    """Val rows that it ran on."""
    stopped: bool
    """It ran no further, since it was certain to fail."""


@dataclass
class Search:
    """What is known so far. Sets of parts kept in fp32 are by number."""

    quantize: Quantize
    score: Score
    reference: Reference
    max_drop: float
    max_evaluations: int
    say: Callable[[str], None] | None = None
    trials: dict[frozenset[int], Trial] = field(default_factory=dict)
    graphs: dict[frozenset[int], Path] = field(default_factory=dict)
    seen: dict[frozenset[int], Evaluation] = field(default_factory=dict)
    energies: dict[frozenset[int], float] = field(default_factory=dict)
    simulation: Simulation | None = None
    costs: tuple[float, ...] = ()
    ranked: tuple[int, ...] = ()
    """Parts, those first that take the most error away for what they cost."""

    @property
    def evaluations(self) -> int:
        """Runs over val rows, that of fp32 included."""
        return 1 + len(self.trials)

    @property
    def rows_run(self) -> int:
        """Val rows run, those of fp32 included."""
        return len(self.reference.order) + sum(e.rows for e in self.seen.values())

    @property
    def left(self) -> int:
        return self.max_evaluations - self.evaluations

    def order(self, simulation: Simulation, cost: Callable[[Part], float] | None) -> None:
        parts = simulation.parts
        self.simulation = simulation
        self.costs = tuple(float(cost(p)) if cost else float(p.given) for p in parts)
        worth = [simulation.error((i,)) / max(self.costs[i], 1e-12) for i in range(len(parts))]
        # Six digits: the order must not hang on the last bit of a sum.
        self.ranked = tuple(sorted(range(len(parts)), key=lambda i: (-float(f"{worth[i]:.6g}"), parts[i].nodes)))

    def prefix(self, count: int) -> frozenset[int]:
        return frozenset(self.ranked[:count])

    def given(self, kept: Collection[int]) -> float:
        return sum(self.costs[i] for i in sorted(kept))

    def names(self, kept: Collection[int]) -> tuple[str, ...]:
        return tuple(n for i in sorted(kept) for n in self.simulation.parts[i].nodes) if self.simulation else ()

    def evaluate(self, kept: frozenset[int]) -> Trial:
        if kept in self.trials:
            return self.trials[kept]
        names = self.names(kept)
        if self.say:
            self.say(f"evaluate with {len(names)} nodes in fp32" if names else "evaluate int8")
        path = self.quantize(names)
        self.graphs[kept] = path
        self._note(kept, evaluate(self.reference, path, self.score, self.max_drop))
        return self.trials[kept]

    def finish(self, kept: frozenset[int]) -> None:
        """Run what is left of the rows of a graph that was stopped."""
        if not self.seen[kept].whole:
            self._note(kept, finish(self.reference, self.seen[kept], self.graphs[kept], self.score))

    def _note(self, kept: frozenset[int], seen: Evaluation) -> None:
        within = seen.whole and seen.drop <= self.max_drop + SLACK
        names, given = self.names(kept), self.given(kept)
        self.seen[kept] = seen
        self.trials[kept] = Trial(names, seen.drop, given, within, seen.rows, not seen.whole)

    def strength(self, kept: frozenset[int]) -> float:
        """s(E) of the simulated error with these parts in fp32 and the others in int8: 0 to 1."""
        assert self.simulation is not None
        if kept not in self.energies:
            others = frozenset(range(len(self.simulation.parts))) - kept
            self.energies[kept] = self.simulation.error(others)
        energy = self.energies[kept]
        return energy / (1 + energy) if math.isfinite(energy) else 1.0

    def predicted(self, kept: frozenset[int]) -> float:
        """The drop to expect, from the measured failure whose simulated error is nearest above."""
        failed = [k for k, t in self.trials.items() if not t.within]
        nearest = min(failed, key=lambda k: (self.strength(k), -self.seen[k].expected))
        return self.seen[nearest].expected * self.strength(kept) / max(self.strength(nearest), 1e-30)

    @property
    def best(self) -> frozenset[int] | None:
        """Of what keeps the allowed drop, that which gives the least away."""
        good = [k for k, t in self.trials.items() if t.within]
        return min(good, key=lambda k: (self.trials[k].given, self.trials[k].drop)) if good else None


def shorten(search: Search) -> None:
    """Find a short prefix of the ranked parts with which the drop is allowed."""
    low, high, aim = 0, len(search.ranked), _AIM * search.max_drop  # low fails; high, all in fp32, needs no proof
    found = False
    while search.left > 0 and high - low > 1:
        count = _shorter(search, low, high) if found else _reach(search, low, high, aim)
        if not found and search.left == 1:
            count = high - 1
        if count is None:
            return
        if search.evaluate(search.prefix(count)).within:
            high, found = count, True
        else:
            low, aim = count, aim / 2


def _reach(search: Search, low: int, high: int, aim: float) -> int:
    """The shortest prefix between the two whose predicted drop is at most `aim`; the longest where none is."""
    below, above = low, high - 1
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if search.predicted(search.prefix(middle)) <= aim else (middle, above)
    return above


def _shorter(search: Search, low: int, high: int) -> int | None:
    """A prefix that gives away about half of what is between the two, and longer where the prediction asks for it.

    None where no prefix promises to be allowed, or where too little is at stake.
    """
    start, end = (search.given(search.prefix(count)) for count in (low, high))
    if end - start <= _WORTH * sum(search.costs):
        return None
    middle = min(range(low + 1, high), key=lambda c: abs(search.given(search.prefix(c)) - (start + end) / 2))
    count = max(middle, _reach(search, low, high, search.max_drop))
    return count if search.predicted(search.prefix(count)) <= search.max_drop else None


def give_back(search: Search) -> None:
    """Turn kept parts back to int8, the costliest first, where the prediction allows it and the evaluation agrees."""
    kept = search.best
    if kept is None:
        return
    for part in sorted(kept, key=lambda i: (-search.costs[i], i)):
        less = kept - {part}
        if search.left <= 0 or search.costs[part] < _WORTH * sum(search.costs):
            return
        if less not in search.trials and search.predicted(less) <= search.max_drop and search.evaluate(less).within:
            kept = less
