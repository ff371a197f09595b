"""One definition of each quality metric, for training, profiling and reports.

`score` gives values with their units, also by slice. The values come from scikit-learn, scipy, seqeval and sacreBLEU
(see metric_scores.py), with no network; `load_metric` gives each as an `evaluate.Metric`, and 'hub:NAME' takes a metric
of the hub. A user's own is 'my_metric.py:function'. docs/metrics.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from edgewise.errors import DataError, need_extra
from edgewise.metric_evaluate import HUB, compute, hub_value, load_metric
from edgewise.metric_inputs import DataKind, kind_of, named, read_inputs
from edgewise.metric_scores import NoValueError
from edgewise.metric_tables import table, unknown_metric
from edgewise.metric_user import better_of, call_own, is_own, load_own
from edgewise.slices import Slice
from edgewise.types import Kind, Metric, ProblemType, Task
from edgewise.units import METRICS, WORST, Better

__all__ = ["HUB", "Score", "SliceScore", "compute", "default_metrics", "known_metrics", "load_metric", "score"]

SMALLEST_SLICE = 20
"""Rows: a slice with fewer is shown, but is never the worst one; its value is mostly chance."""


@dataclass(frozen=True)
class SliceScore:
    """A metric on one slice of the rows."""

    by: str
    """The column, 'length' or 'class'."""
    slice: str
    """What the rows of the slice share."""
    value: float | None
    n: int
    """Rows."""
    why: str = ""
    """Why there is no value."""


@dataclass(frozen=True)
class Score:
    """One metric on a set of rows."""

    name: str
    value: float | None
    """None when kind is unavailable; never NaN or infinite."""
    unit: str
    """Canonical, as in edgewise.units."""
    better: Better
    n: int
    """Rows behind the value."""
    kind: Kind = "measured"
    why: str = ""
    """Why it is unavailable."""
    method: str = ""
    """What the value rests on, for example sacreBLEU's signature, or the name of the worst slice."""
    slices: tuple[SliceScore, ...] = ()

    def as_metric(self) -> Metric:
        """As measurements keep it, without bounds."""
        return Metric(self.name, self.unit, self.value, method=self.method, n=self.n, kind=self.kind, why=self.why)


def default_metrics(task: Task, problem_type: ProblemType | None = None) -> tuple[str, ...]:
    """The metrics of a task, the one to choose by first. Raises DataError for a task that has none."""
    by_kind: dict[DataKind, tuple[str, ...]] = {
        "class": ("accuracy", "f1"),
        "multi": ("f1", "f1_micro", "accuracy"),
        "number": ("pearson", "spearman", "mse", "mae"),
        "tags": ("f1", "precision", "recall", "accuracy"),
        "text": ("bleu", "exact_match", "char_error"),
        "logprob": ("perplexity",),
    }
    return by_kind[kind_of(task, problem_type)]


def score(
    names: Sequence[str],
    predictions: Sequence[Any],
    references: Sequence[Any] | None,
    *,
    task: Task,
    labels: Sequence[str] = (),
    problem_type: ProblemType | None = None,
    slices: Sequence[Slice] = (),
    smallest: int = SMALLEST_SLICE,
) -> dict[str, Score]:
    """Metrics of predictions against references, by name, in the order of `names`.

    names: as in `known_metrics`, 'hub:NAME', or 'file.py:function' (a function that returns a dict gives one score an
    entry, 'file.py:function/KEY'). predictions, references: see edgewise.metric_inputs; of language modelling, pairs
    (sum of log-probabilities, tokens), and no references. labels: in the order of the model's outputs.
    slices: see edgewise.slices. Each score then has a value a slice, and a score 'worst_slice_NAME' follows it: the
    worst value among the slices of at least `smallest` rows.

    A metric without a value on these rows (a correlation of a constant) is unavailable, and says why.
    Raises DataError for an unknown name, no rows, or input that does not fit the task.
    """
    kind = kind_of(task, problem_type)
    given, right = read_inputs(kind, predictions, references, labels)
    found: dict[str, Score] = {}
    for name in names:
        base = name.removeprefix(WORST)
        if base != name and not slices:
            raise DataError(f"{name!r} needs slices: give columns of the data, 'length' or 'class'")
        for one in _measured(base, kind, given, right, labels):
            parts = tuple(_on_slice(one.name, base, s, kind, (given, right), labels) for s in slices)
            found[one.name] = replace(one, slices=parts)
            if slices:
                found[WORST + one.name] = _worst(found[one.name], smallest)
    return found


def known_metrics(task: Task, problem_type: ProblemType | None = None, labels: int = 2) -> tuple[str, ...]:
    """The names that a task has, beside 'hub:NAME' and 'file.py:function'."""
    return tuple(table(kind_of(task, problem_type), labels))


def _measured(
    name: str, kind: DataKind, given: list[Any], right: list[Any], labels: Sequence[str]
) -> tuple[Score, ...]:
    """The scores of one name; more than one only where a user's own function returns a dict."""
    if is_own(name):
        function = load_own(name)
        values = call_own(name, function, named(kind, given, labels), named(kind, right, labels))
        blank = Score(name, None, "number", better_of(function, name), len(given), method="the user's own")
        return tuple(
            _filled(replace(blank, name=f"{name}/{key}" if key else name), partial(float, value))
            for key, value in values.items()
        )
    if name.startswith(HUB):
        blank = Score(name, None, "number", "higher", len(given), method="of the hub")
        return (_filled(blank, lambda: hub_value(name, given, right, labels)),)
    functions = table(kind, len(labels))
    if name not in functions:
        raise DataError(unknown_metric(name, tuple(functions)))
    known = METRICS[name]
    blank = Score(name, None, known.unit, known.better, len(given))
    return (_filled(blank, lambda: functions[name](given, right)),)


def _filled(blank: Score, value: Callable[[], float | tuple[float, str]]) -> Score:
    """`blank` with its value, or with the reason why there is none."""
    try:
        found = value()
    except NoValueError as error:
        return replace(blank, kind="unavailable", why=str(error))
    except ImportError as error:
        raise need_extra("profile", error) from error
    number, method = found if isinstance(found, tuple) else (found, blank.method)
    if not math.isfinite(number):
        return replace(blank, kind="unavailable", why=f"the value is {number}, no finite number")
    return replace(blank, value=number, method=method)


def _on_slice(
    name: str, base: str, part: Slice, kind: DataKind, sides: tuple[list[Any], list[Any]], labels: Sequence[str]
) -> SliceScore:
    if not part.rows:
        return SliceScore(part.by, part.value, None, 0, "the slice has no rows")
    if part.rows[-1] >= len(sides[0]):
        raise DataError(f"slice {part.name!r} names row {part.rows[-1]}; there are {len(sides[0])} rows")
    given, right = ([side[i] for i in part.rows] for side in sides)
    found = next((s for s in _measured(base, kind, given, right, labels) if s.name == name), None)
    value, why = (found.value, found.why) if found else (None, f"no {name!r} on this slice")
    return SliceScore(part.by, part.value, value, len(part.rows), why)


def _worst(whole: Score, smallest: int) -> Score:
    blank = Score(WORST + whole.name, None, whole.unit, whole.better, 0)
    able = [s for s in whole.slices if s.value is not None and s.n >= smallest]
    if not able:
        why = f"none of {len(whole.slices)} slices has a value and {smallest} rows"
        return replace(blank, kind="unavailable", why=why)
    pick = min if whole.better == "higher" else max
    worst = pick(able, key=lambda s: s.value or 0.0)
    return replace(blank, value=worst.value, n=worst.n, method=f"{worst.by} = {worst.slice}, the worst of {len(able)}")
