"""The search of guarded quantization: which parts to keep in fp32, found with few runs over the val rows.

An evaluation runs val rows; everything else rests on a simulation on a few inputs (`sensitivity`). It says what noise a
graph adds to its answers, and with that how likely the drop is allowed (`guard_outlook`) before anything is evaluated.
Once a graph is, its drop D corrects what is expected elsewhere: noise costs accuracy in proportion to its energy E
while it is small, and no more than a guess when it is large, so what the outlook missed is taken to be D * s(E') / s(E)
elsewhere, with s(E) = E / (1 + E). These predictions choose what to evaluate; what is said of the result is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist

from edgewise.exporter.guard_outlook import Guess, Outlook
from edgewise.exporter.sensitivity import Part, Simulation
from edgewise.exporter.stopping import SLACK, Evaluation, Reference, Score, evaluate, finish

_WORTH = 0.02
"""Share of what all parts together cost that another evaluation must promise to win back, by its chance."""
_DEAR = 8
"""A graph with the share q in int8 that is within the limit by chance p is worth p * q**_DEAR: bytes come first, and a
graph that almost surely fails is not tried for their sake. With each two failures bytes count for less."""
LIKELY = 0.5
"""All int8 is evaluated first where its chance is as good."""
_POSSIBLE = 0.25
"""Chance from which less is tried once something is within the limit: what fails is stopped early."""
_DOUBT = 0.35
"""Standard deviation of a prediction, as a share of what it says."""
_GRID = 14
"""How many prefixes of the ranked parts are looked at in one choice."""

Quantize = Callable[[tuple[str, ...]], Path]
"""(names of nodes to keep in fp32) -> the graph; each call a path of its own."""
Kept = frozenset[int]
"""Numbers of the parts that stay in fp32."""
INT8: Kept = frozenset()


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
    """What is known so far."""

    quantize: Quantize
    score: Score
    reference: Reference
    max_drop: float
    max_evaluations: int
    say: Callable[[str], None] | None = None
    trials: dict[Kept, Trial] = field(default_factory=dict)
    graphs: dict[Kept, Path] = field(default_factory=dict)
    seen: dict[Kept, Evaluation] = field(default_factory=dict)
    simulation: Simulation | None = None
    costs: tuple[float, ...] = ()
    ranked: tuple[int, ...] = ()
    """Parts, those first that take the most error away for what they cost."""
    _simulated: dict[Kept, tuple[float, Guess]] = field(default_factory=dict)
    """Error of the simulation, and the drop that is expected of it."""

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

    def begin(self, simulation: Simulation, cost: Callable[[Part], float] | None) -> None:
        self.simulation = simulation
        self.costs = tuple(float(cost(p)) if cost else float(p.given) for p in simulation.parts)

    def rank(self) -> None:
        assert self.simulation is not None
        parts, error = self.simulation.parts, self.simulation.error
        if self.say:
            self.say(f"simulate each of {len(parts)} weights in int8")
        worth = [error((i,)) / max(self.costs[i], 1e-12) for i in range(len(parts))]
        # Six digits: the order must not hang on the last bit of a sum.
        self.ranked = tuple(sorted(range(len(parts)), key=lambda i: (-float(f"{worth[i]:.6g}"), parts[i].nodes)))

    def prefix(self, count: int) -> Kept:
        return frozenset(self.ranked[:count])

    def given(self, kept: Collection[int]) -> float:
        return sum(self.costs[i] for i in sorted(kept))

    def share(self, kept: Collection[int]) -> float:
        """What is not given away, of all that could be: 0 to 1."""
        return 1 - self.given(kept) / max(sum(self.costs), 1e-12)

    def names(self, kept: Collection[int]) -> tuple[str, ...]:
        return tuple(n for i in sorted(kept) for n in self.simulation.parts[i].nodes) if self.simulation else ()

    def graph(self, kept: Kept) -> Path:
        if kept not in self.graphs:
            self.graphs[kept] = self.quantize(self.names(kept))
        return self.graphs[kept]

    def evaluate(self, kept: Kept) -> Trial:
        if kept in self.trials:
            return self.trials[kept]
        if self.say:
            self.say(f"evaluate with {len(self.names(kept))} nodes in fp32" if kept else "evaluate int8")
        self._note(kept, evaluate(self.reference, self.graph(kept), self.score, self.max_drop))
        return self.trials[kept]

    def finish(self, kept: Kept) -> None:
        """Run what is left of the rows of a graph that was stopped."""
        if not self.seen[kept].whole:
            self._note(kept, finish(self.reference, self.seen[kept], self.graphs[kept], self.score))

    def _note(self, kept: Kept, seen: Evaluation) -> None:
        within = seen.whole and seen.drop <= self.max_drop + SLACK
        names, given = self.names(kept), self.given(kept)
        self.seen[kept] = seen
        self.trials[kept] = Trial(names, seen.drop, given, within, seen.rows, not seen.whole)

    # ---- what to expect

    def _simulate(self, kept: Kept) -> tuple[float, Guess]:
        """(s(E) of the simulated error with these parts in fp32 and the others in int8, 0 to 1; the drop expected from
        it alone)."""
        assert self.simulation is not None
        if kept not in self._simulated:
            others = frozenset(range(len(self.simulation.parts))) - kept
            if self.reference.leads is None:
                energy, guess = self.simulation.error(others), Guess(0.0, 0.0)
            else:
                energy, moved = self.simulation.errors(others)
                guess = Outlook(self.reference).guess(moved)
            self._simulated[kept] = energy / (1 + energy) if math.isfinite(energy) else 1.0, guess
        return self._simulated[kept]

    def expected(self, kept: Kept) -> Guess:
        """The drop to expect, corrected by the evaluated graph whose simulated error is nearest above, or nearest."""
        if kept in self.seen:
            return Guess(self.seen[kept].expected, 0.0)
        strength, guess = self._simulate(kept)
        if not self.seen:
            return guess
        above = [k for k in self.seen if self._simulate(k)[0] >= strength]
        nearest = min(above or self.seen, key=lambda k: (abs(self._simulate(k)[0] - strength), -self.seen[k].expected))
        strongest, before = self._simulate(nearest)
        ratio = strength / max(strongest, 1e-30)
        mean = guess.mean + (self.seen[nearest].expected - before.mean) * ratio
        # What both graphs round is the same noise, and its luck is known.
        return Guess(mean, math.hypot(guess.sd * math.sqrt(max(1 - ratio, 0.0)), _DOUBT * max(mean, 0.0)))

    def chance(self, kept: Kept) -> float:
        """Of a drop within the limit."""
        guess, limit = self.expected(kept), self.max_drop + SLACK
        if guess.sd <= 0:
            return float(guess.mean <= limit)
        half = 0.5 / len(self.reference.order)  # of a row: a drop is a whole number of them
        return NormalDist(guess.mean, guess.sd).cdf(limit + half)

    @property
    def best(self) -> Kept | None:
        """Of what keeps the allowed drop, that which gives the least away."""
        good = [k for k, t in self.trials.items() if t.within]
        return min(good, key=lambda k: (self.trials[k].given, self.trials[k].drop)) if good else None


def shorten(search: Search) -> None:
    """Evaluate prefixes of the ranked parts, until one is within the limit and none shorter promises enough."""
    most = len(search.ranked) - 1  # with all parts in fp32 nothing is left of int8, and nothing to prove
    while search.left > 0 and search.best is None:
        failed = [count for count in range(most + 1) if search.prefix(count) in search.trials]
        counts = _grid(max(failed, default=-1) + 1, most)
        if not counts:
            return
        dear = _DEAR / (1 + len(failed) / 2)
        values = {c: search.chance(search.prefix(c)) * search.share(search.prefix(c)) ** dear for c in counts}
        count = most if failed and search.left == 1 else max(counts, key=lambda c: (values[c], -c))
        search.evaluate(search.prefix(count))
    while search.left > 0:
        lengths = {count: search.trials.get(search.prefix(count)) for count in range(most + 1)}
        high = min(count for count, trial in lengths.items() if trial and trial.within)
        low = max((count for count, trial in lengths.items() if trial and count < high), default=-1)
        promises = {c: _promise(search, search.prefix(c)) for c in _grid(low + 1, high - 1)}
        if not promises or max(promises.values()) < _WORTH:
            return
        search.evaluate(search.prefix(max(promises, key=lambda c: (promises[c], -c))))


def _promise(search: Search, kept: Kept) -> float:
    """What evaluating this would win on the best so far, on average; 0 where it most likely fails."""
    best, chance = search.best, search.chance(kept)
    assert best is not None
    return chance * (search.share(kept) - search.share(best)) if chance >= _POSSIBLE else 0.0


def _grid(low: int, high: int) -> list[int]:
    """Whole numbers from low to high, both included, the farther apart the larger they are."""
    if high < low:
        return []
    steps: Iterable[float] = (i / (_GRID - 1) for i in range(_GRID))
    return sorted({low + round((high - low + 1) ** step) - 1 for step in steps})


def give_back(search: Search) -> None:
    """Turn kept parts back to int8, the costliest first, where that promises enough and the evaluation agrees."""
    kept = search.best
    if kept is None:
        return
    for part in sorted(kept, key=lambda i: (-search.costs[i], i)):
        less = kept - {part}
        if search.left <= 0:
            return
        if less not in search.trials and _promise(search, less) >= _WORTH and search.evaluate(less).within:
            kept = less
