"""What answers are worth, for every task: metrics with bounds, and the outcome of each row.

One label an input has its own bounds (Wilson, and for F1 the delta method); the metrics of the others have no formula,
and take the rows as what repeats: percentiles of a bootstrap over rows. Language models stand in likelihood.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from edgewise.data import Row
from edgewise.errors import DataError
from edgewise.metric_inputs import DataKind, kind_of
from edgewise.profiler.graphs import GraphFile
from edgewise.profiler.plumbing import Subject
from edgewise.types import Metric

RESAMPLES = 200
_DIGITS = 12
"""Hex digits of an answer's hash that the store keeps as a number: 48 bits."""


def kind_of_subject(subject: Subject) -> DataKind | None:
    """The form of its answers; None for an ONNX file, and for a task without answers to compare."""
    if isinstance(subject.bundle, GraphFile):
        return None
    problem: Any = subject.manifest.problem_type
    try:
        return kind_of(subject.manifest.task, problem)
    except DataError:
        return None


def judged_without_labels(subject: Subject) -> bool:
    """Whether its rows need no labels to judge it: a language model, whose text is its own reference."""
    return kind_of_subject(subject) == "logprob"


def reference_of(row: Row, kind: DataKind) -> Any:
    """What is right, in the form of the answers; None where it is not known."""
    if kind == "multi":
        return None if row.labels is None else list(row.labels)
    if kind == "tags":
        return None if row.tags is None else list(row.tags)
    return {"class": row.label, "number": row.number, "text": row.target}[kind]


def answer_number(value: Any, kind: DataKind) -> int:
    """A number for an answer, the same for the same one: what the store compares row by row."""
    plain = sorted(value) if kind == "multi" else value
    return int(
        hashlib.sha256(json.dumps(plain, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS], 16
    )


def quality_metrics(
    subject: Subject, names: Sequence[str], given: Sequence[Any], right: Sequence[Any], level: float
) -> tuple[Metric, ...]:
    """The metrics of answers that are not one label, with one-sided bounds at `level` each."""
    from edgewise.metrics import score  # imports evaluate, scikit-learn, sacreBLEU: seconds

    manifest = subject.manifest
    labels, problem = manifest.labels, cast(Any, manifest.problem_type)

    def scores(rows: Sequence[int]) -> dict[str, Metric]:
        sides = ([side[i] for i in rows] for side in (given, right))
        found = score(names, *sides, task=manifest.task, labels=labels, problem_type=problem)
        return {name: one.as_metric() for name, one in found.items()}

    whole = scores(range(len(given)))
    random = np.random.default_rng(0)
    drawn = [scores(random.integers(0, len(given), len(given)).tolist()) for _ in range(RESAMPLES)]
    return tuple(_bounded(metric, [d[name].value for d in drawn], level) for name, metric in whole.items())


def _bounded(metric: Metric, drawn: Sequence[float | None], level: float) -> Metric:
    known = [v for v in drawn if v is not None]
    if metric.value is None or len(known) < len(drawn):
        return metric
    low, high = (float(np.quantile(known, q)) for q in (1 - level, level))
    method = "; ".join(filter(None, (metric.method, f"bootstrap over rows, {RESAMPLES} times")))
    # A value near its end, such as 0 errors, may lie outside of what was drawn.
    return replace(metric, low=min(low, metric.value), high=max(high, metric.value), level=level, method=method)
