"""What a search knows of one bundle on one target, and what it may still hope for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from edgewise.selector.budgets import metric_of
from edgewise.selector.contest import PairedComparison
from edgewise.selector.look import TIMED, bounds_of_look, spread_of_numbers, spread_of_times
from edgewise.selector.shorter import bounds_of_shorter
from edgewise.selector.words import point
from edgewise.types import Budget, Entry, Metric
from edgewise.units import METRICS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Depth = Literal["no", "part", "full"]
"""How much was measured: nothing; a look, or answers to some of the rows; all of it."""
Source = Literal["known", "look", "answers", "full"]
"""Where a metric comes from: known without running; timed calls, a look bounds it; answers, some rows bound it; a full
measurement alone."""

_SCENARIOS = ("offline_", "multistream_", "server_", "paced_", "sustained_", "ttft_", "tpot_", "token_")


def source_of(metric: str) -> Source:
    """Where a metric comes from."""
    if metric in ("size", "train_time"):
        return "known"
    if metric in TIMED:
        return "look"
    return "full" if metric in ("energy", "gpu_memory", "roofline") or metric.startswith(_SCENARIOS) else "answers"


@dataclass(frozen=True)
class Known:
    """One bundle on one target, and what is known of it."""

    entry: Entry
    """With the metrics so far: of a full measurement as it has them, of a part with its bounds at the race's level; the
    times of one that was not timed as a shorter length bounds them."""
    answers: str
    """Points with the same one give the same answers: a bundle with all settings but the threads."""
    answered: Depth = "no"
    timed: Depth = "no"
    right: NDArray[np.bool_] | None = field(default=None, compare=False)
    """(rows,) which rows are answered right, of some or of all; None without labels, or where right is no yes or no."""
    times: tuple[NDArray[np.float64], ...] = field(default=(), compare=False)
    """Seconds of the calls, one array a process."""
    numbers: Mapping[str, Metric] = field(default_factory=dict, compare=False)
    """Start-up and memory of a look, as means over its processes."""
    same_as: str | None = None
    """Key of a point that is the same in all but name: another length, which leaves the same tokens of every row."""

    @property
    def full(self) -> bool:
        return self.answered == "full" and self.timed == "full"

    def depth(self, source: Source) -> Depth:
        """How much of a metric from there is known."""
        if source == "known":
            return "full"
        if source == "answers":
            return self.answered
        return "part" if source == "full" and self.timed == "no" else self.timed

    def exact(self, metric: str) -> bool:
        """Whether the metric stands as the choice will see it."""
        return self.depth(source_of(metric)) == "full"


@dataclass(frozen=True)
class Rules:
    """What the choice goes by, and how sure the race must be."""

    budgets: Sequence[Budget]
    objective: Sequence[str]
    weights: Sequence[float] = ()
    confidence: float = 0.95
    """At which budgets hold and ties are called."""
    level: float = 0.99
    """One-sided, of each test that drops a point."""
    width: float = 0.05
    """Half width, relative to the value, that a fully measured time may be left with."""
    rows: int = 1
    """Rows of a full measurement of the answers."""
    part: tuple[int, ...] = ()
    """Places of the rows that are answered first; none: all are answered at once."""
    batch: int = 2
    """Points that are measured in full together."""
    twice: int = 6
    """Looks in two processes, which tell how far processes lie apart; later ones are one process."""
    tried: int = 6
    """Looks that tell whether a budget of times breaks most points, so that all are looked at before they answer."""
    most: float = 0.6
    """What share is most."""
    looks: int = 4
    """Processes in which a point is looked at, at most, before it is measured in full."""

    @property
    def references(self) -> dict[str, str]:
        return {b.metric: b.relative_to for b in self.budgets if b.relative_to}


def at_best(known: Known, metric: Metric | None, name: str) -> float | None:
    """The best that a metric may turn out to be at the race's level; its value where it is exact; None: anything."""
    value = point(metric)
    if metric is None or value is None or known.exact(name):
        return value
    bound = metric.high if METRICS[name].better == "higher" else metric.low
    if bound is None and metric.low is None and metric.high is None and metric.kind == "measured":
        return value  # of the reference itself
    return bound


def entry_at_best(known: Known, rules: Rules) -> Entry:
    """The entry with every objective as good as it may be, without intervals; what is not bounded is left out."""
    found = {}
    for name in rules.objective:
        best = at_best(known, metric_of(known.entry, name, rules.references.get(name)), name)
        if best is not None:
            found[name] = Metric(name, METRICS[name].unit, best)
    return replace(known.entry, metrics=found)


def as_guessed(known: Known) -> Known:
    """With the values of a look in the place of its bounds: as a measurement in full would find it, were they right."""
    if known.timed != "part":
        return known
    metrics = {
        name: replace(m, low=m.value, high=m.value) if name in TIMED else m for name, m in known.entry.metrics.items()
    }
    return replace(known, entry=replace(known.entry, metrics=metrics))


def with_bounds(points: Mapping[str, Known], level: float) -> dict[str, Known]:
    """Every point that was looked at with its bounds anew: each process tells more of how far processes lie apart. Of
    those that were not looked at, where a shorter length of the same bundle was, with what that one's calls say."""
    full = [k.entry.metrics for k in points.values() if k.timed == "full"]
    told = [*full, *(k.numbers for k in points.values() if k.timed == "part")]
    spreads = {
        "time": spread_of_times(k.times for k in points.values()),
        "startup": spread_of_numbers("startup", [m["startup"] for m in told if "startup" in m]),
        "memory": spread_of_numbers("memory", [m["peak_rss"] for m in told if "peak_rss" in m]),
    }
    found = {}
    for key, known in points.items():
        if known.timed == "part":
            batch = known.entry.target.run.batch_size if known.entry.target else 1
            bounds = bounds_of_look(known.times, known.numbers, spreads, level, batch_size=batch)
            found[key] = _with_metrics(known, bounds)
    for key, metrics in bounds_of_shorter(points.values(), spreads, level).items():
        found[key] = _with_metrics(points[key], metrics)
    return found


def _with_metrics(known: Known, metrics: Mapping[str, Metric]) -> Known:
    return replace(known, entry=replace(known.entry, metrics={**known.entry.metrics, **metrics}))


def pairing_of(points: Mapping[str, Known], memo: dict[tuple[str, str], tuple[float, float]]) -> PairedComparison:
    """A comparison row by row of those whose rows are all answered; memo: by their answers, kept between steps."""

    def compare(a: Entry, b: Entry, metric: str) -> tuple[float, float] | None:
        one, other = points.get(a.key), points.get(b.key)
        if metric != "accuracy" or one is None or other is None or one.answered != "full" or other.answered != "full":
            return None
        if one.right is None or other.right is None or len(one.right) != len(other.right):
            return None
        key = (one.answers, other.answers)
        if key not in memo:
            difference = one.right.astype(float) - other.right.astype(float)
            mean = float(difference.mean())
            memo[key] = mean, float(max(0.0, (difference**2).mean() - mean**2) / len(difference)) ** 0.5
        return memo[key]

    return compare
