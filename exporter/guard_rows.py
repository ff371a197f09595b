"""What guarded quantization counts as right, task by task, and how near each answer of fp32 is to another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.errors import DataError
from edgewise.exporter.outcomes import Example
from edgewise.exporter.sessions import answers, open_graphs
from edgewise.exporter.stopping import Reference, Score
from edgewise.types import Task

_IGNORED = -100
_WORDS = "share of next tokens that are the text's, given those before"
MEASURES: dict[Task, str] = {
    "text-classification": "share of labels right",
    "image-classification": "share of labels right",
    "token-classification": "share of words tagged right",
    "fill-mask": "share of masked tokens right",
    "text-generation": _WORDS,
    "text2text-generation": _WORDS,
}
"""What a drop is of, in points; means over rows."""
_VARIANCE = "variance explained (R squared)"

Judge = Callable[[np.ndarray, Any], tuple[float, float]]
"""(answer of one row, its target) -> (score, at most 1, NaN without a target; how far the nearest other answer is)."""


def measure_of(task: Task, problem_type: str | None) -> str:
    """What `max_drop` is of, in words. KeyError for a task without right answers."""
    return _VARIANCE if task == "text-classification" and problem_type == "regression" else MEASURES[task]


def guard_judge(task: Task, problem_type: str | None, rows: Sequence[Example]) -> Judge:
    """How rows of a task are scored. rows: val rows, whose targets say how much a number varies.

    Raises DataError for a task without right answers, and for numbers that are all the same.
    """
    if task not in MEASURES:
        raise DataError(f"max_drop is of the share of right answers, and {task} has none: measure it where it is used")
    if task == "text-classification" and problem_type == "regression":
        targets = np.array([e.target for e in rows if e.target is not None], dtype=np.float64)
        spread = float(targets.var()) if len(targets) else 0.0
        if not spread:
            raise DataError(f"max_drop is of the variance explained, and the {len(targets)} numbers of val do not vary")
        return partial(_number, spread=spread)
    if task == "text-classification" and problem_type == "multi_label_classification":
        return _several
    return _one if task.endswith(("text-classification", "image-classification")) else _words


def fp32_reference(folder: Path, task: Task, rows: Sequence[Example], judge: Judge) -> Reference:
    """Run the fp32 graphs in `folder` on all rows. Raises DataError where none of them has a target."""
    seen = list(_run(folder, task, rows, judge))
    reference = Reference(np.array([s for s, _ in seen]), np.array([m for _, m in seen]))
    assert len(reference.order)  # raises where no row counts
    return reference


def scorer(task: Task, rows: Sequence[Example], judge: Judge) -> Score:
    """What runs the graphs beside a path on the rows asked for, one row at a time."""

    def score(graph: Path, numbers: Sequence[int]) -> Iterator[float]:
        return (s for s, _ in _run(graph.parent, task, [rows[i] for i in numbers], judge))

    return score


def _run(folder: Path, task: Task, rows: Sequence[Example], judge: Judge) -> Iterator[tuple[float, float]]:
    # A batch of 1 each: the batch changes the answers of dynamic int8.
    graphs = open_graphs(folder, task)
    for example in rows:
        yield judge(answers(graphs, example.feeds)[0], example.target)


def _one(found: np.ndarray, target: Any) -> tuple[float, float]:
    return (float(found.argmax() == target) if target is not None else np.nan), _margin(found)


def _several(found: np.ndarray, target: Any) -> tuple[float, float]:
    score = float(((found > 0) == (target > 0.5)).mean()) if target is not None else np.nan
    return score, float(np.abs(found).min())


def _number(found: np.ndarray, target: Any, spread: float) -> tuple[float, float]:
    return (1 - (float(found[0]) - target) ** 2 / spread if target is not None else np.nan), 0.0


def _words(found: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    asked = target != _IGNORED
    rows = found[asked]
    return float((rows.argmax(-1) == target[asked]).mean()), min(_margin(row) for row in rows)


def _margin(logits: np.ndarray) -> float:
    """How far the largest is above the next."""
    if len(logits) < 2:
        return 0.0
    below, top = np.partition(logits, -2)[-2:]
    return float(top - below)
