"""Accuracy-guarded quantization: which nodes must stay in fp32 so that int8 loses no more than allowed.

An evaluation runs all val rows; everything else rests on a simulation on a few inputs (`sensitivity`). Noise in the
logits costs accuracy in proportion to its energy E while it is small, and no more than a guess when it is large, so a
measured drop D says what the drop is elsewhere: D * s(E') / s(E), with s(E) = E / (1 + E). That prediction chooses
what to evaluate; what is said of the result is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.errors import DataError, PlanError
from edgewise.exporter.against_fp32 import drop_bound
from edgewise.exporter.quantize import check_keep, kept_nodes
from edgewise.exporter.sensitivity import Part, Simulation, simulate
from edgewise.paired import normal_quantile, paired_drop, words_for_drop
from edgewise.types import Recipe

LEVEL = 0.95
"""Of the bounds; one-sided."""
_WORTH = 0.01
"""Share of what all parts together cost below which giving less away is worth no further evaluation."""
_AIM = 0.75
"""Share of the allowed drop that the first guess aims for; halved with each guess that fails."""

Quantize = Callable[[tuple[str, ...]], Path]
"""(names of nodes to keep in fp32) -> the graph; each call a path of its own."""
Score = Callable[[Path], Sequence[float]]
"""Graph -> the score of each val row: 1 or 0 for right or wrong. NaN where a row has none."""


@dataclass(frozen=True)
class Trial:
    """One int8 graph that was evaluated."""

    keep: tuple[str, ...]
    drop: float
    """Mean score of fp32 less that of this graph; 0.005 is half a point of accuracy."""
    given: float
    """What keeping costs: bytes, or what the `cost` callable counts in."""
    within: bool


@dataclass(frozen=True)
class Guarded:
    """The int8 graph that keeps the allowed drop and gives the least away for it."""

    keep: tuple[str, ...]
    """Exact names of the nodes in fp32, in the order of the graph, beside what the recipe itself keeps."""
    graph: Path
    drop: float
    """Mean score of fp32 less that of the graph, on val rows."""
    drop_relative: float
    """As a share of fp32's mean score."""
    bound: float
    """One-sided 95% upper bound of the drop, from the paired rows."""
    fp32: float
    """Mean score of fp32."""
    rows: int
    share_int8: float
    """Share of the bytes of all fp32 weights that are int8 here."""
    given: float
    """What keeping costs: bytes, or what the `cost` callable counts in."""
    evaluations: int
    """Runs over all val rows, that of fp32 included."""
    tried: tuple[Trial, ...]
    """In the order of evaluation; the first is all int8."""
    met: bool
    """False where no graph that was tried, and has a weight in int8, keeps the allowed drop."""
    words: str


def guard(
    graph: Path,
    recipe: Recipe,
    quantize: Quantize,
    score: Score,
    feeds: Sequence[Mapping[str, np.ndarray]],
    *,
    max_drop: float,
    max_evaluations: int = 12,
    cost: Callable[[Part], float] | None = None,
    say: Callable[[str], None] | None = None,
) -> Guarded:
    """Find the nodes to keep in fp32 so that the mean score drops by at most `max_drop` against the fp32 `graph`.

    recipe: the int8 recipe that `quantize` makes; nodes that it keeps itself are not given back.
    feeds: sample inputs of the graph, from rows of train; 16 to 32 tell weights apart.
    max_drop: in the unit of the score; of accuracy 0.005 is half a point.
    max_evaluations: runs over all val rows, with that of fp32. The last one is kept for the most fp32 there is.
    cost: what keeping a part gives away (milliseconds, say); bytes unless given.

    Raises PlanError for a recipe that is not int8, a limit that cannot be, or a keep suffix that no node has; DataError
    for scores that do not pair up.
    """
    if not recipe.int8:
        raise PlanError(f"max_drop is for int8-dynamic and int8-static, not for {recipe.name}")
    if not (math.isfinite(max_drop) and max_drop >= 0):
        raise PlanError(f"max_drop is {max_drop!r}; expected 0 or more in the unit of the score, for example 0.005")
    if max_evaluations < 2:
        raise PlanError(f"max_evaluations is {max_evaluations}; fp32 and int8 alone take 2")
    check_keep([graph], recipe.keep)
    search = _Search(quantize, score, max_drop, max_evaluations, np.asarray(score(graph), dtype=np.float64), say)
    if not search.evaluate(frozenset()).within and search.left > 0:
        search.order(simulate(graph, search.graphs[frozenset()], feeds), cost)
        _shorten(search)
        _give_back(search)
    return _result(graph, search)


@dataclass
class _Search:
    """What is known so far. Sets of parts kept in fp32 are by number."""

    quantize: Quantize
    score: Score
    max_drop: float
    max_evaluations: int
    reference: np.ndarray
    say: Callable[[str], None] | None
    evaluations: int = 1
    """fp32 was the first."""
    trials: dict[frozenset[int], Trial] = field(default_factory=dict)
    graphs: dict[frozenset[int], Path] = field(default_factory=dict)
    scores: dict[frozenset[int], np.ndarray] = field(default_factory=dict)
    energies: dict[frozenset[int], float] = field(default_factory=dict)
    simulation: Simulation | None = None
    costs: tuple[float, ...] = ()
    ranked: tuple[int, ...] = ()
    """Parts, those first that take the most error away for what they cost."""

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
        scores = np.asarray(self.score(path), dtype=np.float64)
        self.evaluations += 1
        drop = float(_differences(self.reference, scores).mean())
        self.graphs[kept], self.scores[kept] = path, scores
        self.trials[kept] = Trial(names, drop, self.given(kept), drop <= self.max_drop + 1e-12)
        return self.trials[kept]

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
        nearest = min(failed, key=lambda k: (self.strength(k), -self.trials[k].drop))
        return self.trials[nearest].drop * self.strength(kept) / max(self.strength(nearest), 1e-30)


def _shorten(search: _Search) -> None:
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


def _reach(search: _Search, low: int, high: int, aim: float) -> int:
    """The shortest prefix between the two whose predicted drop is at most `aim`; the longest where none is."""
    below, above = low, high - 1
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if search.predicted(search.prefix(middle)) <= aim else (middle, above)
    return above


def _shorter(search: _Search, low: int, high: int) -> int | None:
    """A prefix that gives away about half of what is between the two, and longer where the prediction asks for it.

    None where no prefix promises to be allowed, or where too little is at stake.
    """
    start, end = (search.given(search.prefix(count)) for count in (low, high))
    if end - start <= _WORTH * sum(search.costs):
        return None
    middle = min(range(low + 1, high), key=lambda c: abs(search.given(search.prefix(c)) - (start + end) / 2))
    count = max(middle, _reach(search, low, high, search.max_drop))
    return count if search.predicted(search.prefix(count)) <= search.max_drop else None


def _give_back(search: _Search) -> None:
    """Turn kept parts back to int8, the costliest first, where the prediction allows it and the evaluation agrees."""
    kept = _best(search)
    if kept is None:
        return
    for part in sorted(kept, key=lambda i: (-search.costs[i], i)):
        less = kept - {part}
        if search.left <= 0 or search.costs[part] < _WORTH * sum(search.costs):
            return
        if less not in search.trials and search.predicted(less) <= search.max_drop and search.evaluate(less).within:
            kept = less


def _best(search: _Search) -> frozenset[int] | None:
    """Of what keeps the allowed drop, that which gives the least away."""
    good = [k for k, t in search.trials.items() if t.within]
    return min(good, key=lambda k: (search.trials[k].given, search.trials[k].drop)) if good else None


def _result(graph: Path, search: _Search) -> Guarded:
    best = _best(search)
    # Not met: the least drop that was seen, with the most in fp32 where two are equal.
    kept = min(search.trials, key=lambda k: (search.trials[k].drop, -len(k))) if best is None else best
    trial = search.trials[kept]
    differences = _differences(search.reference, search.scores[kept])
    fp32 = float(search.reference[~np.isnan(search.reference)].mean())
    values: dict[str, Any] = {
        "keep": trial.keep,
        "graph": search.graphs[kept],
        "drop": trial.drop,
        "drop_relative": trial.drop / fp32 if fp32 else 0.0,
        "bound": _bound(differences),
        "fp32": fp32,
        "rows": len(differences),
        "share_int8": share_of_int8(graph, search.graphs[frozenset()], trial.keep),
        "given": trial.given,
        "evaluations": search.evaluations,
        "tried": tuple(search.trials.values()),
        "met": best is not None,
    }
    return Guarded(**values, words=_words(values, search))


def share_of_int8(graph: Path, int8: Path, keep: Sequence[str]) -> float:
    """Share of the bytes of the fp32 graph's weights that are int8 when `keep` stays in fp32.

    int8: the graph in which all that can be is int8.
    """
    from edgewise.exporter.sensitivity import weights_in_int8

    numbers, total = weights_in_int8(graph, int8, kept_nodes(graph, keep))
    return numbers / total if total else 0.0


def _words(found: Mapping[str, Any], search: _Search) -> str:
    seen = (
        f"the score drops by {100 * found['drop']:.2f} points ({found['drop_relative']:.2%} of fp32's "
        f"{100 * found['fp32']:.2f}) on {found['rows']:,} val rows, at most {100 * found['bound']:.2f} at {LEVEL:.0%}"
    )
    share = f"{found['share_int8']:.1%} of the weights in int8, {len(found['keep'])} nodes in fp32"
    tries = f"{found['evaluations']} evaluations"
    if found["met"]:
        return f"Within {100 * search.max_drop:g} points on val: {seen}; {share}; {tries}."
    most = len(search.ranked) - 1
    why = (
        "even with all but one weight in fp32"
        if most >= 0 and search.prefix(most) in search.trials
        else f"and max_evaluations={search.max_evaluations} left no more to try"
    )
    limit = f"{100 * search.max_drop:g} points"
    return f"Not within {limit}, {why}: at best {seen}, with {share}; {tries}. Take fp32, or allow more."


def confirm(score_fp32: Sequence[float], score_int8: Sequence[float], max_drop: float) -> str:
    """The sentence that confirm rows allow: 'within' only where the one-sided 95% upper bound of the drop is.

    Otherwise the drop, its bound, and how many more rows would show it, if any would. Points for right or wrong.
    """
    drop = _differences(np.asarray(score_fp32, np.float64), np.asarray(score_int8, np.float64))
    if _is_right_or_wrong(drop):
        lost, gained = int((drop > 0).sum()), int((drop < 0).sum())
        return words_for_drop(paired_drop(lost, gained, len(drop), LEVEL), 100 * max_drop)
    mean, bound = float(drop.mean()), _bound(drop)
    seen = f"the score drops by {mean:.4f} on {len(drop):,} rows, at most {bound:.4f} at {LEVEL:.0%}"
    if bound <= max_drop:
        return f"Within {max_drop:g} of fp32: {seen}."
    if mean >= max_drop:
        return f"Not shown to be within {max_drop:g} of fp32: {seen}; more rows would not show it."
    needed = math.ceil((normal_quantile(LEVEL) * float(drop.std(ddof=1)) / (max_drop - mean)) ** 2)
    more = max(1, needed - len(drop))
    return f"Not shown to be within {max_drop:g} of fp32: {seen}; about {more:,} more rows would, if the drop stays."


def _differences(fp32: np.ndarray, int8: np.ndarray) -> np.ndarray:
    """fp32 less int8, row by row, where both have a score: float64 [rows]."""
    if fp32.shape != int8.shape or fp32.ndim != 1:
        raise DataError(f"fp32 has {fp32.shape} scores and int8 {int8.shape}; expected one a row, of the same rows")
    found: np.ndarray = (fp32 - int8)[~np.isnan(fp32 - int8)]
    if not len(found):
        raise DataError(f"none of the {len(fp32)} val rows has a score: are they labelled?")
    return found


def _is_right_or_wrong(drop: np.ndarray) -> bool:
    return bool(np.isin(drop, (-1.0, 0.0, 1.0)).all())


def _bound(drop: np.ndarray) -> float:
    """One-sided 95% upper bound of the mean: Tango's for right or wrong, else a bootstrap over rows."""
    if not _is_right_or_wrong(drop):
        return drop_bound(drop, "score")
    high = paired_drop(int((drop > 0).sum()), int((drop < 0).sum()), len(drop), LEVEL).points.high
    assert high is not None
    return high / 100
