"""Accuracy-guarded quantization: which nodes must stay in fp32 so that int8 loses no more than allowed.

`guard` simulates what keeps the limit (`guard_outlook`), measures what promises most (`guard_search`), and stops a
graph as soon as it has failed (`stopping`). `confirm` is the sentence that rows without a part in this allow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.errors import DataError, PlanError
from edgewise.exporter.against_fp32 import drop_bound
from edgewise.exporter.guard_search import INT8, LIKELY, Quantize, Search, Trial, give_back, shorten
from edgewise.exporter.quantize import check_keep, kept_nodes
from edgewise.exporter.sensitivity import Part, simulate, weights_in_int8
from edgewise.exporter.stopping import Reference, Score
from edgewise.paired import normal_quantile, paired_drop, words_for_bound, words_for_drop
from edgewise.types import Recipe

_NEAREST = 16
"""Feeds that are simulated where it is known what noise would turn."""
LEVEL = 0.95
"""Of the bounds; one-sided."""


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
    """Graphs that val rows were run on, fp32 included."""
    rows_run: int
    """Val rows run in all of them: a graph is stopped once it has failed."""
    tried: tuple[Trial, ...]
    """In the order of evaluation; all int8 is among them where it was likely enough to keep the limit."""
    met: bool
    """False where no graph that was tried, and has a weight in int8, keeps the allowed drop."""
    words: str


def guard(
    graph: Path,
    recipe: Recipe,
    quantize: Quantize,
    reference: Reference,
    score: Score,
    feeds: Sequence[Mapping[str, np.ndarray]],
    *,
    max_drop: float,
    max_evaluations: int = 12,
    cost: Callable[[Part], float] | None = None,
    joined: Callable[[Path], Path] | None = None,
    say: Callable[[str], None] | None = None,
) -> Guarded:
    """Find the nodes to keep in fp32 so that the mean score drops by at most `max_drop` against the fp32 `graph`.

    recipe: the int8 recipe that `quantize` makes; nodes that it keeps itself are not given back.
    reference: what the fp32 graph scores on the val rows, which counts as an evaluation.
    feeds: sample inputs of the graph, on which nothing was calibrated: 16 tell weights apart, and of 100 those are
    chosen that lie nearest to another answer.
    max_drop: in the unit of the score; of accuracy 0.005 is half a point.
    max_evaluations: graphs that val rows are run on, fp32 included. The last one is kept for the most fp32 there is.
    cost: what keeping a part gives away (milliseconds, say); bytes unless given.
    joined: what `quantize` gives -> all its weights in one graph as `graph` has them, where that is another file.

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
    search = Search(quantize, score, reference, max_drop, max_evaluations, say)
    int8 = search.graph(INT8)
    int8 = joined(int8) if joined else int8
    if reference.leads is None:  # nothing says what noise would turn
        search.evaluate(INT8)
    if search.best is None and search.left > 0:
        simulation = simulate(graph, int8, feeds)
        search.begin(simulation if reference.leads is None else simulation.nearest(_NEAREST), cost)
        if not search.trials and search.chance(INT8) >= LIKELY:
            search.evaluate(INT8)
    if search.best is None and search.left > 0:
        search.rank()
        shorten(search)
        give_back(search)
    return _result(graph, int8, search)


def _result(graph: Path, int8: Path, search: Search) -> Guarded:
    best, reference = search.best, search.reference
    # Not met: the least drop that was seen, with the most in fp32 where two are equal.
    kept = min(search.trials, key=lambda k: (search.seen[k].expected, -len(k))) if best is None else best
    search.finish(kept)
    trial = search.trials[kept]
    differences = (reference.scores - search.seen[kept].scores)[reference.order]
    values: dict[str, Any] = {
        "keep": trial.keep,
        "graph": search.graphs[kept],
        "drop": trial.drop,
        "drop_relative": trial.drop / reference.mean if reference.mean else 0.0,
        "bound": _bound(differences),
        "fp32": reference.mean,
        "rows": len(differences),
        "share_int8": share_of_int8(graph, int8, trial.keep),
        "given": trial.given,
        "evaluations": search.evaluations,
        "rows_run": search.rows_run,
        "tried": tuple(search.trials.values()),
        "met": best is not None,
    }
    return Guarded(**values, words=_words(values, search))


def share_of_int8(graph: Path, int8: Path, keep: Sequence[str]) -> float:
    """Share of the bytes of the fp32 graph's weights that are int8 when `keep` stays in fp32.

    int8: the graph in which all that can be is int8.
    """
    numbers, total = weights_in_int8(graph, int8, kept_nodes(graph, keep))
    return numbers / total if total else 0.0


def _words(found: Mapping[str, Any], search: Search) -> str:
    seen = (
        f"the score drops by {100 * found['drop']:.2f} points ({found['drop_relative']:.2%} of fp32's "
        f"{100 * found['fp32']:.2f}) on {found['rows']:,} val rows, at most {100 * found['bound']:.2f} at {LEVEL:.0%}"
    )
    share = f"{found['share_int8']:.1%} of the weights in int8, {len(found['keep'])} nodes in fp32"
    tries = f"{found['evaluations']} evaluations, {found['rows_run']:,} val rows run"
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
    mean, bound, limit = 100 * float(drop.mean()), 100 * _bound(drop), 100 * max_drop
    seen = f"the score drops by {mean:.2f} points on {len(drop):,} rows, at most {bound:.2f} at {LEVEL:.0%}"
    if bound <= limit:
        return words_for_bound(seen, 0, limit)
    if mean >= limit:
        return words_for_bound(seen, None, limit)
    needed = math.ceil((normal_quantile(LEVEL) * 100 * float(drop.std(ddof=1)) / (limit - mean)) ** 2)
    return words_for_bound(seen, max(1, needed - len(drop)), limit)


def _differences(fp32: np.ndarray, int8: np.ndarray) -> np.ndarray:
    """fp32 less int8, row by row, where both have a score: float64 [rows]."""
    if fp32.shape != int8.shape or fp32.ndim != 1:
        raise DataError(f"fp32 has {fp32.shape} scores and int8 {int8.shape}; expected one a row, of the same rows")
    found: np.ndarray = (fp32 - int8)[~np.isnan(fp32 - int8)]
    if not len(found):
        raise DataError(f"none of the {len(fp32)} rows has a score: are they labelled?")
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
